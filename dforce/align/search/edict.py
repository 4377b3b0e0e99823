"""EDICT (Wallace et al. 2022): a deterministic sampler that can be run backwards exactly; DOODL, which stands on it.

Two copies of the tokens take turns: each is moved by the noise that the network sees in the other, so the step is
affine in what it moves and can be undone. In the terms of `dforce.transition` the noise that y shows, put to x, is the
estimate x0_hat(y) + (x - y) / alpha; with x0_hat(y) alone the last step, to level 0, would forget x.
Un-mixing divides by p twice a step and so amplifies rounding: the copies are kept in float64 whatever the network is.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.matrix import checked_matrix
from dforce.core.schedule import Schedule
from dforce.core.transition import transition
from dforce.core.tree import State
from dforce.guidance.energy import Energy, energies
from dforce.guidance.wrapper import innermost


class Edict:
    """EDICT down one matrix [M, T] or [M, B, T], eta 0. mix is the paper's p: 1 lets the copies drift apart.

    state, cond: as for `dforce.sample`. dtype: of what the network is shown; None: that of its weights. ValueError for
    a step from a level where alpha is 0 (pure noise of a flow path), which tells nothing of x0.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, matrix: Tensor, *, mix: float = 0.93,
                 state: State = None, cond: Cond | None = None, dtype: torch.dtype | None = None):
        if not 0 < mix <= 1:
            raise ValueError(f"mix must lie in (0, 1], got {mix}")
        self.matrix = checked_matrix(matrix, schedule.levels, complete=False)
        leaves_noise = (self.matrix[1:] < self.matrix[:-1]) & (schedule.alpha.to(matrix.device)[self.matrix[:-1]] == 0)
        if leaves_noise.any():
            raise ValueError("EDICT cannot leave a level where alpha is 0: pure noise of a flow path tells nothing of "
                             f"x0. Begin at a level below {int(self.matrix[:-1][leaves_noise].max())}")
        self.denoiser, self.schedule, self.mix = denoiser, schedule, mix
        network = innermost(denoiser)
        weights = network.parameters() if isinstance(network, nn.Module) else ()
        shown = (weight.dtype for weight in weights if weight.is_floating_point())
        self.state, self.cond, self.dtype = state, cond, dtype or next(shown, torch.float64)

    def down(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both copies [B, T, *E] at the end, float64, from those at the first row (y None: the same as x)."""
        x, y = x.double(), (x if y is None else y).double()
        for row in range(len(self.matrix) - 1):
            x, y = self.step(x, y, row)
        return x, y

    def up(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The copies that `down` takes to x, y: noise from data."""
        x, y = x.double(), (x if y is None else y).double()
        for row in reversed(range(len(self.matrix) - 1)):
            x, y = self.back(x, y, row)
        return x, y

    def through(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`down`, with a gradient in x and y at the memory of one step. Not in the weights."""
        return _Through.apply(self, x.double(), (x if y is None else y).double())

    def step(self, x: Tensor, y: Tensor, row: int) -> tuple[Tensor, Tensor]:
        level, to = self._levels(row, x)
        x = self._moved(x, y, level, to)
        y = self._moved(y, x, level, to)
        moves = (to < level).view(*level.shape, *(1,) * (x.ndim - 2))
        x = torch.where(moves, self.mix * x + (1 - self.mix) * y, x)
        return x, torch.where(moves, self.mix * y + (1 - self.mix) * x, y)

    def back(self, x: Tensor, y: Tensor, row: int) -> tuple[Tensor, Tensor]:
        level, to = self._levels(row, x)
        moves = (to < level).view(*level.shape, *(1,) * (x.ndim - 2))
        y = torch.where(moves, (y - (1 - self.mix) * x) / self.mix, y)
        x = torch.where(moves, (x - (1 - self.mix) * y) / self.mix, x)
        y = self._returned(y, x, level, to)
        return self._returned(x, y, level, to), y

    def _levels(self, row: int, x: Tensor) -> tuple[Tensor, Tensor]:
        level, to = (self.matrix[at].to(x.device).expand(x.shape[:2]) for at in (row, row + 1))
        return level, to

    def _moved(self, x: Tensor, other: Tensor, level: Tensor, to: Tensor) -> Tensor:
        """x after the step, by the noise that `other` shows."""
        state = self.denoiser.init_state(len(x), self.cond) if self.state is None else self.state
        x0, _ = self.denoiser(other.to(self.dtype), level, state, self.cond)
        alpha, _ = self.schedule(level, x)
        x0 = x0.double() + (x - other) / alpha.where(alpha > 0, 1.0)  # 0 only where it is held
        return transition(self.schedule, x, x0, level, to, eta=0.0).mean

    def _returned(self, x: Tensor, other: Tensor, level: Tensor, to: Tensor) -> Tensor:
        """The x that `_moved` takes to x: the step is alpha_to / alpha times x, plus what it makes of 0."""
        alpha, alpha_to = self.schedule(level, x)[0], self.schedule(to, x)[0]
        away = self._moved(torch.zeros_like(x), other, level, to)
        moves = (to < level).view(alpha.shape)
        return torch.where(moves, (x - away) * alpha.where(moves, 1.0) / alpha_to.where(moves, 1.0), x)


class _Through(torch.autograd.Function):
    """`down` with a gradient in the tokens that stores none of the steps: they are run backwards, one at a time."""

    @staticmethod
    def forward(ctx: Any, edict: Edict, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        ctx.edict = edict
        for row in range(len(edict.matrix) - 1):
            x, y = edict.step(x, y, row)
        ctx.save_for_backward(x, y)
        return x, y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        x, y = ctx.saved_tensors
        for row in reversed(range(len(ctx.edict.matrix) - 1)):
            with torch.no_grad():
                x, y = ctx.edict.back(x, y, row)
            with torch.enable_grad():
                ends = x.detach().requires_grad_(), y.detach().requires_grad_()
                grads = torch.autograd.grad(ctx.edict.step(*ends, row), ends, grads)
        return None, grads[0], grads[1]


class Optimised(NamedTuple):
    """x0: [B, T, *E] the best found; latent: [B, T, *E] the noise that it comes from; energy: [updates + 1, B]."""

    x0: Tensor
    latent: Tensor
    energy: Tensor


def doodl(edict: Edict, x: Tensor, energy: Energy, *, updates: int = 10, rate: float = 0.1,
          momentum: float = 0.9) -> Optimised:
    """DOODL (Wallace et al. 2023): the noise x [B, T, *E] itself is optimised, through the exactly inverted sampler.

    Gradient ascent of a differentiable `energy` [B] at the clean end, with momentum; a sample's gradient is scaled to
    unit mean square, so `rate` is in standard deviations of noise, and the latent keeps its length (typical noise is a
    sphere). The best of all updates is returned, the start among them.
    """
    if updates < 1 or rate <= 0 or not 0 <= momentum < 1:
        raise ValueError(f"updates must be >= 1, rate > 0, momentum in [0, 1), got {updates}, {rate}, {momentum}")
    shape, over = (-1, *(1,) * (x.ndim - 1)), tuple(range(1, x.ndim))
    latent, velocity = x.detach(), torch.zeros_like(x)
    length = latent.square().sum(over, keepdim=True).sqrt()
    best, at, history = latent, latent, list[Tensor]()
    top = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
    for turn in range(updates + 1):
        leaf = latent.detach().requires_grad_()
        with torch.enable_grad():
            end = edict.through(leaf)[0].to(x.dtype)
            value = energies(energy, end)
            if not value.requires_grad:
                raise ValueError("this energy has no gradient in the tokens; `demon`, `steer`, `best_of_n` need none")
            if turn < updates:
                gradient, = torch.autograd.grad(value.sum(), leaf)
        history.append(value.detach().double())
        better = history[-1] > top
        top = torch.where(better, history[-1], top)
        best = torch.where(better.view(shape), end.detach(), best)
        at = torch.where(better.view(shape), latent, at)
        if turn < updates:
            size = gradient.square().mean(over, keepdim=True).sqrt()
            velocity = momentum * velocity + torch.where(size > 0, gradient / size.where(size > 0, 1.0), 0.0)
            moved = latent + rate * velocity
            norm = moved.square().sum(over, keepdim=True).sqrt()
            latent = torch.where(velocity.abs().amax(over, keepdim=True) > 0, moved * length / norm, latent)
    return Optimised(best, at, torch.stack(history))
