"""Estimates kept inside the range of the data."""

from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.tree import State
from dforce.guidance.wrapper import Wrapper


class clipped(Wrapper):
    """x0_hat clamped to [low, high] (data units), as pixel models do; gradients pass where nothing is clamped.

    Raises ValueError unless low < high.
    """

    def __init__(self, denoiser: Denoiser, low: float = -1.0, high: float = 1.0):
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}")
        super().__init__(denoiser)
        self.low, self.high = low, high

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        x0, state = self.denoiser(x, level, state, cond)
        return x0.clamp(self.low, self.high), state
