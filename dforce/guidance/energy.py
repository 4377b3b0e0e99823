"""Guidance: functions from denoisers to denoisers, small classes in lower case. Samplers never hear of it.

An energy is a log-potential, larger is better: sampling is tilted towards p(x0) exp(scale * energy(x0)).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.schedule import Schedule
from dforce.core.tree import State
from dforce.guidance.wrapper import Wrapper

Energy = Callable[[Tensor], Tensor]  # x0 [B, T, *E] -> log-potential [B]


def tilt(schedule: Schedule, x: Tensor, x0: Tensor, level: Tensor, gradient: Tensor) -> Tensor:
    """x0_hat after adding `gradient` (of a log-potential in x) to the score (Tweedie's formula), but at alpha = 0."""
    alpha, sigma = schedule(level, x)
    factor = torch.where(alpha > 0, sigma**2 / alpha.where(alpha > 0, 1.0), 0.0)
    return x0 + factor.to(x0.dtype) * gradient.to(x0.dtype)


def whole(past: Tensor | None, x0: Tensor) -> Tensor:
    """The sequence that an energy judges: finished tokens [B, P, *E], repeated for each draw, then x0 [n B, T, *E]."""
    if past is None:
        return x0
    return torch.cat([past.repeat(len(x0) // len(past), *(1,) * (past.ndim - 1)), x0], 1)


def energies(energy: Energy, x0: Tensor) -> Tensor:
    """energy(a copy of x0) [B]. Raises ValueError for another shape."""
    values = energy(x0.clone())
    if values.shape != x0.shape[:1]:
        raise ValueError(f"energies map sequences {[*x0.shape]} to one number each, [{len(x0)}], got {[*values.shape]}")
    return values


class WithEnergy(Wrapper):
    """Keeps finished tokens "past" [B, P, *E] beside the "inner" state, since energies judge whole sequences."""

    recurrent = False
    global_x0 = True

    def __init__(self, denoiser: Denoiser, schedule: Schedule, energy: Energy, scale: float):
        super().__init__(denoiser)
        self.schedule, self.energy, self.scale = schedule, energy, scale

    def init_state(self, batch: int, cond: Cond | None = None) -> State:
        return {"inner": self.denoiser.init_state(batch, cond), "past": None}

    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        return {"inner": self.denoiser.absorb(x, level, state["inner"], cond), "past": whole(state["past"], x)}

    def estimate(self, x: Tensor, level: Tensor, state: State, cond: Cond | None) -> tuple[Tensor, State]:
        """x0_hat of the denoiser inside and the state after. ValueError if x0_hat has no gradient in x."""
        x0, state = self.denoiser(x, level, state, cond)
        if not x0.requires_grad:
            raise ValueError(f"{type(self).__name__}() takes a gradient through the denoiser inside, and "
                             f"{type(self.denoiser).__name__} gives estimates without one: add the energies up, or put "
                             "guided(..., differentiable=True) inside")
        return x0, state


class guided(WithEnergy):
    """Plain guidance (Dhariwal & Nichol 2021; Chung et al. 2023): the gradient of energy(x0_hat(x)) in the noisy x.

    It ignores that x0_hat is uncertain: the exact tilt for linear energies only, it otherwise pulls too hard on early
    tokens; `monte_carlo` accounts for that. energy: [B, T, *E] -> [B], of whole sequences, finished tokens included.
    differentiable: keeps the graph, for learning through guidance and for guidance around guidance.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, energy: Energy, scale: float = 1.0, *,
                 differentiable: bool = False):
        super().__init__(denoiser, schedule, energy, scale)
        self.differentiable = differentiable

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        with torch.enable_grad():
            leaf = x if self.differentiable and x.requires_grad else x.detach().requires_grad_()
            x0, inner = self.estimate(leaf, level, state["inner"], cond)
            energy = energies(self.energy, whole(state["past"], x0))
            gradient, = torch.autograd.grad(energy.sum(), leaf, create_graph=self.differentiable)
        x0 = tilt(self.schedule, x, x0, level, self.scale * gradient)
        return (x0 if self.differentiable else x0.detach()), {**state, "inner": inner}
