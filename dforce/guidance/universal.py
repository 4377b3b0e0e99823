"""Guidance by classifiers of noisy tokens, the backward half of universal guidance, and time travel.

The gradient of an energy at x0_hat is `dforce.guided`: DPS, FreeDoM and the forward half of universal guidance.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.noise import Noise, NoiseSource
from dforce.core.schedule import Schedule
from dforce.core.step import Std, Step
from dforce.core.transition import renoise, transition
from dforce.core.tree import State
from dforce.guidance.energy import Energy, energies, tilt
from dforce.guidance.wrapper import NonCausalWrapper

NoisyLikelihood = Callable[[Tensor, Tensor], Tensor]  # (x [B, T, *E] at level [B, T], level) -> log p(y | x) [B]

TRAVEL_SALT = 5  # stream of the noise of time travel, beside the sampler's own


class classifier_guided(NonCausalWrapper):
    """Classifier guidance (Dhariwal & Nichol 2021, section 4): by a classifier that was trained on noisy tokens.

    x0_hat moves by scale sigma^2 / alpha times the gradient of log_likelihood(x, level) [B] in the noisy x, not through
    the denoiser. With the exact log p(y | x_level) and scale 1, samples are from the posterior.
    """

    global_x0 = True

    def __init__(self, denoiser: Denoiser, schedule: Schedule, log_likelihood: NoisyLikelihood, scale: float = 1.0):
        super().__init__(denoiser)
        self.schedule, self.log_likelihood, self.scale = schedule, log_likelihood, scale

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        x0, state = self.denoiser(x, level, state, cond)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = self.log_likelihood(leaf.clone(), level.clone())
            if value.shape != x.shape[:1]:
                raise ValueError(f"a log-likelihood maps sequences {[*x.shape]} to one number each, [{len(x)}], got "
                                 f"{[*value.shape]}")
            gradient, = torch.autograd.grad(value.sum(), leaf)
        return tilt(self.schedule, x, x0, level, self.scale * gradient), state


class backward_guided(NonCausalWrapper):
    """The backward half of universal guidance (Bansal et al. 2023, section 3.2): gradient ascent in x0_hat itself.

    energy: [B, T, *E] -> [B]. updates: of length rate times the gradient. Finished tokens, at level 0, stay.
    """

    global_x0 = True

    def __init__(self, denoiser: Denoiser, energy: Energy, *, updates: int = 5, rate: float = 0.1):
        if updates < 1 or rate <= 0:
            raise ValueError(f"updates must be >= 1 and rate positive, got {updates} and {rate}")
        super().__init__(denoiser)
        self.energy, self.updates, self.rate = energy, updates, rate

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        x0, state = self.denoiser(x, level, state, cond)
        free = (level > 0).view(*level.shape, *(1,) * (x.ndim - 2))
        moved = x0.detach()
        for _ in range(self.updates):
            with torch.enable_grad():
                leaf = moved.requires_grad_()
                gradient, = torch.autograd.grad(energies(self.energy, leaf).sum(), leaf)
            moved = torch.where(free, leaf.detach() + self.rate * gradient, leaf.detach())
        return moved, state


class time_travel:
    """Self-recurrence (Lugmayr et al. 2022; universal guidance; FreeDoM, Yu et al. 2023), a `draw` for `dforce.sample`.

    A step is taken, noised back to its level and denoised anew, `repeats` times, before it counts. With an exact
    denoiser the law of the samples stays the same. denoiser, eta, std, min_std, state, cond: as given to `sample`, at
    order 1. first, last: only tokens that leave a level in first..last travel (FreeDoM: the middle, where content is
    decided).
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, repeats: int, *, eta: float = 1.0,
                 std: Std | None = None, min_std: float = 0.0, first: int = 1, last: int | None = None,
                 state: State = None, cond: Cond | None = None, noise: NoiseSource | None = None):
        last = schedule.levels if last is None else last
        if repeats < 0 or not 1 <= first <= last <= schedule.levels:
            raise ValueError(f"repeats must be >= 0 and 1 <= first <= last <= {schedule.levels}, got {repeats}, "
                             f"{first}, {last}")
        self.denoiser, self.schedule, self.repeats, self.noise = denoiser, schedule, repeats, noise or Noise()
        self.eta, self.std, self.min_std, self.first, self.last = eta, std, min_std, first, last
        self.state, self.cond = state, cond

    def __call__(self, step: Step, noise: Tensor) -> tuple[Tensor, None]:
        level, kernel, x = step.level, step.kernel, step.x
        to = torch.where((level >= self.first) & (level <= self.last), step.to, level)  # the others stay where they are
        if self.repeats == 0 or not bool((to < level).any()):
            return kernel.sample(noise), None
        state = self.denoiser.init_state(len(x), self.cond) if self.state is None else self.state
        std = self.std(level, step.to) if callable(self.std) else self.std
        row, token = level.sum(1, keepdim=True), torch.arange(x.shape[1], device=x.device)
        travels = (to < level).view(*level.shape, *(1,) * (x.ndim - 2))
        for turn in range(self.repeats):
            down, up = (self.noise(row, token, x, salt=TRAVEL_SALT + 2 * turn + i) for i in (0, 1))
            below = torch.where(travels, kernel.sample(down), x)
            x = renoise(self.schedule, below, to, level, up)
            x0, _ = self.denoiser(x, level, state, self.cond)
            kernel = transition(self.schedule, x, x0, level, step.to, eta=self.eta, std=std, min_std=self.min_std)
        return kernel.sample(noise), None
