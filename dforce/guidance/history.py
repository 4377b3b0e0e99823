"""History guidance (Song et al. 2025, 'History-Guided Video Diffusion'): a past that is shown at several noise levels.

Every absorbed token has its own noise level, so the past can be shown as it is, noised in part, or as pure noise (no
past), and the estimates combined, without further training of a model of independent levels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser, fork_cond
from dforce.core.noise import Noise, NoiseSource
from dforce.core.schedule import Schedule
from dforce.core.transition import renoise
from dforce.core.tree import State, map_state
from dforce.guidance.wrapper import Wrapper

SALT = 11  # stream of the noise that is added to pasts
SUM = 1e-6  # tolerance of the sum of the weights


class Past(NamedTuple):
    """A way to show the past: weight of its estimate, std of its noise in data units (0: as it is, inf: not at all)."""

    weight: float
    std: float


def vanilla(weight: float) -> tuple[Past, ...]:
    """x0(past) + (weight - 1) (x0(past) - x0(no past)); large weights freeze the video (1.5 to 3 was good there)."""
    return Past(weight, 0.0), Past(1 - weight, math.inf)


def fractional(weight: float, std: float) -> tuple[Past, ...]:
    """x0(past) + (weight - 1) (x0(past noised by std) - x0(no past)): the coarse past guides, which keeps motion."""
    return Past(1.0, 0.0), Past(weight - 1, std), Past(1 - weight, math.inf)


class history_guided(Wrapper):
    """A denoiser that answers sum_i weight_i x0_hat(past shown with std_i), for weights that sum to one.

    A token is absorbed at its own level or that of std_i, whichever is noisier, and is noised to it with counter-based
    `noise`, the same for all pasts. The tokens of one call (a chunk) are not noised, so `generate` absorbs none of them
    before the chunk is finished. Each past costs a state and a row of the batch; those of weight 0 are left out.
    State: {"past": a tuple of states, "token": [B] int64, tokens so far}.
    """

    keeps_chunk = True

    def __init__(self, denoiser: Denoiser, schedule: Schedule, pasts: Sequence[Past], *,
                 noise: NoiseSource | None = None):
        if not denoiser.causal:
            raise ValueError("history guidance shows the past through the state, which takes a causal denoiser")
        if denoiser.global_x0 or denoiser.keeps_chunk:
            raise ValueError("history guidance noises the past, which energies and history guidance inside would then "
                             "see noised: write guided(history_guided(...), ...), and give one list of pasts")
        super().__init__(denoiser)
        total = sum(weight for weight, _ in pasts)
        if abs(total - 1) > SUM:
            raise ValueError(f"the weights of the pasts must sum to 1, or x0_hat loses its size; they sum to {total:g}")
        weights: dict[int, float] = {}
        for weight, std in pasts:
            level = schedule.levels if std == math.inf else schedule.nearest(std)
            weights[level] = weights.get(level, 0.0) + weight
        self.weights = {level: weight for level, weight in weights.items() if weight != 0}
        self.schedule, self.noise = schedule, noise or Noise()

    def init_state(self, batch: int, cond: Cond | None = None) -> State:
        state = self.denoiser.init_state(batch, cond)
        return {"past": (state,) * len(self.weights), "token": torch.zeros(batch, dtype=torch.long,
                                                                          device=self.schedule.alpha.device)}

    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        number = state["token"][:, None] + torch.arange(x.shape[1], device=x.device)
        noise = self.noise(0, number, x, salt=SALT)
        shown = [level.clamp(min=least) for least in self.weights]
        seen = [renoise(self.schedule, x, level, each, noise) for each in shown]
        after = self.denoiser.absorb(torch.cat(seen), torch.cat(shown), self._joined(state),
                                     fork_cond(cond, len(seen)))
        return self._after(after, x, state)

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        count = len(self.weights)
        x0, after = self.denoiser(x.repeat(count, *(1,) * (x.ndim - 1)), level.repeat(count, 1), self._joined(state),
                                  fork_cond(cond, count))
        x0 = sum(weight * part for weight, part in zip(self.weights.values(), x0.split(len(x)), strict=True))
        return x0, self._after(after, x, state)

    def _joined(self, state: State) -> State:
        """The states of all pasts as rows of one batch, the past as the slow dimension."""
        return map_state(lambda *leaves: torch.cat(leaves), *state["past"])

    def _after(self, joined: State, x: Tensor, state: State) -> State:
        """The state after tokens x, from that of all pasts."""
        size = len(x)
        pasts = tuple(map_state(lambda leaf, i=i: leaf[i * size:(i + 1) * size], joined)
                      for i in range(len(self.weights)))
        return {"past": pasts, "token": state["token"] + x.shape[1]}
