"""Guidance: functions from denoisers to denoisers. Samplers never hear of it.

An energy is a log-potential, larger is better: sampling is tilted towards p(x0) exp(scale * energy(x0)).
Wrappers are small classes written in lower case, for they are used as functions: `guided(denoiser, schedule, energy)`.
Monte Carlo Tree Guidance has a module of its own, `dforce.monte_carlo`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dforce.denoiser import Cond, Denoiser
from dforce.schedule import Schedule
from dforce.tree import State, fork

Energy = Callable[[Tensor], Tensor]  # x0 [B, T, *E] -> log-potential [B]


def tilt(schedule: Schedule, x: Tensor, x0: Tensor, level: Tensor, gradient: Tensor) -> Tensor:
    """x0_hat after adding `gradient` (of a log-potential, with respect to x_level) to the score: Tweedie's formula.

    The shift is sigma^2 / alpha times the gradient; at alpha = 0, the pure noise of a flow path, there is no score in
    x to speak of and x0_hat stays.
    """
    alpha, sigma = schedule(level, x)
    factor = torch.where(alpha > 0, sigma**2 / alpha.where(alpha > 0, 1.0), 0.0)
    return x0 + factor.to(x0.dtype) * gradient.to(x0.dtype)


def whole(past: Tensor | None, x0: Tensor) -> Tensor:
    """The sequence that an energy sees: finished tokens [B, P, *E], once for each draw, before x0 [n B, T, *E]."""
    if past is None:
        return x0
    return torch.cat([past.repeat(len(x0) // len(past), *(1,) * (past.ndim - 1)), x0], 1)


def energies(energy: Energy, x0: Tensor) -> Tensor:
    """energy(x0), its shape checked."""
    values = energy(x0)
    if values.shape != x0.shape[:1]:
        raise ValueError(f"an energy maps sequences {[*x0.shape]} to one number each, [{len(x0)}], "
                         f"got {[*values.shape]}")
    return values


class WithEnergy:
    """Carries the finished tokens beside the inner state, for energies judge whole sequences."""

    recurrent = False
    global_x0 = True

    def __init__(self, denoiser: Denoiser, schedule: Schedule, energy: Energy, scale: float):
        self.denoiser, self.schedule, self.energy, self.scale = denoiser, schedule, energy, scale
        self.causal = denoiser.causal

    def init_state(self, batch: int, cond: Cond | None = None) -> State:
        return {"inner": self.denoiser.init_state(batch, cond), "past": None}

    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        return {"inner": self.denoiser.absorb(x, level, state["inner"], cond), "past": whole(state["past"], x)}


class guided(WithEnergy):  # noqa: N801
    """Plain guidance (Dhariwal & Nichol 2021; Chung et al. 2023): the gradient of energy(x0_hat(x)) in the noisy x.

    energy: [B, T, *E] -> [B], on whole sequences, finished tokens included. Because it ignores that x0_hat is
    uncertain it is the exact tilt for linear energies only, and pulls too hard on early tokens otherwise, at every
    scale; `monte_carlo` accounts for it. `differentiable` keeps the graph, for learning through guidance.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, energy: Energy, scale: float = 1.0, *,
                 differentiable: bool = False):
        super().__init__(denoiser, schedule, energy, scale)
        self.differentiable = differentiable

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        with torch.enable_grad():
            leaf = x if self.differentiable and x.requires_grad else x.detach().requires_grad_()
            x0, inner = self.denoiser(leaf, level, state["inner"], cond)
            energy = energies(self.energy, whole(state["past"], x0))
            gradient, = torch.autograd.grad(energy.sum(), leaf, create_graph=self.differentiable)
        x0 = tilt(self.schedule, x, x0, level, self.scale * gradient)
        return (x0 if self.differentiable else x0.detach()), {**state, "inner": inner}


class classifier_free:  # noqa: N801
    """Classifier-free guidance (Ho & Salimans 2022): x0 = x0(null) + scale (x0(cond) - x0(null)).

    `null` is the conditioning that training put in place of a dropped one (None where the network takes none): "static"
    entries [B, ...] (a negative prompt for each) or [1, ...], "token" entries [1, 1, ...], alike for all tokens (else
    ValueError). The state is the pair of states. scale 1 is the conditional denoiser.
    """

    def __init__(self, denoiser: Denoiser, scale: float, null: Cond | None = None):
        for name, value in ((null or {}).get("token") or {}).items():
            if value.shape[:2] != (1, 1):
                raise ValueError(f"null['token'][{name!r}] must be one entry for all tokens, [1, 1, ...], "
                                 f"got {[*value.shape]}")
        self.denoiser, self.scale, self.null = denoiser, scale, null
        self.causal, self.recurrent, self.global_x0 = denoiser.causal, denoiser.recurrent, denoiser.global_x0

    def init_state(self, batch: int, cond: Cond | None = None) -> State:
        null = {**(self.null or {})}
        null["static"] = {name: value.expand(batch, *value.shape[1:]) if len(value) == 1 else value
                          for name, value in (null.get("static") or {}).items()}
        return {"cond": self.denoiser.init_state(batch, cond), "null": self.denoiser.init_state(batch, null)}

    def _without(self, cond: Cond | None) -> Cond:
        """`null` for the tokens that `cond` is about: samplers show any part of a sequence, forked at will."""
        null, present = (self.null or {}).get("token") or {}, (cond or {}).get("token") or {}
        return {"token": {name: null[name].expand_as(value) for name, value in present.items() if name in null}}

    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        return {"cond": self.denoiser.absorb(x, level, state["cond"], cond),
                "null": self.denoiser.absorb(x, level, state["null"], self._without(cond))}

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        with_cond, after = self.denoiser(x, level, state["cond"], cond)
        without, null = self.denoiser(x, level, state["null"], self._without(cond))
        return without + self.scale * (with_cond - without), {"cond": after, "null": null}


class clipped:  # noqa: N801
    """x0_hat clamped to [low, high] (data units), as pixel models do; gradients pass where nothing is clamped."""

    def __init__(self, denoiser: Denoiser, low: float = -1.0, high: float = 1.0):
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}")
        self.denoiser, self.low, self.high = denoiser, low, high
        self.causal, self.recurrent, self.global_x0 = denoiser.causal, denoiser.recurrent, denoiser.global_x0
        self.init_state, self.absorb = denoiser.init_state, denoiser.absorb
        self.keeps_chunk = getattr(denoiser, "keeps_chunk", False)  # as history guidance asks for

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        x0, state = self.denoiser(x, level, state, cond)
        return x0.clamp(self.low, self.high), state


class inpaint:  # noqa: N801
    """Known entries that are no whole token (Diffuser's start and goal): x0_hat is `known` where `mask`.

    known: [B, T, *E] or [T, *E] in the network's units; mask: bool, same shape. The transition then keeps those
    entries on the noised path of the known value, which is what a network trained on noised tokens expects. show =
    "clean" puts the known values themselves into the network's input, as Diffuser trains its network
    (Janner et al. 2022, section 3.2). Entries are found by position, so finished tokens stay in the sequence.
    """

    causal = recurrent = False

    def __init__(self, denoiser: Denoiser, known: Tensor, mask: Tensor, *, show: Literal["noised", "clean"] = "noised"):
        if known.shape != mask.shape or mask.dtype != torch.bool:
            raise ValueError(f"known and a boolean mask must have one shape, got {[*known.shape]} and {[*mask.shape]} "
                             f"({mask.dtype})")
        if show not in ("noised", "clean"):
            raise ValueError(f"show must be 'noised' or 'clean', got {show!r}")
        self.denoiser, self.known, self.mask, self.show = denoiser, known, mask, show
        self.global_x0, self.init_state = denoiser.global_x0, denoiser.init_state

    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        raise ValueError("inpaint() finds entries by position in the sequence and cannot absorb finished tokens")

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        known, mask = self.known, self.mask
        if known.ndim == x.ndim:  # n draws of Monte Carlo guidance come as n B sequences, the draw the slow dimension
            known, mask = fork((known, mask), len(x) // len(known))
        shown = torch.where(mask, known, x) if self.show == "clean" else x
        x0, state = self.denoiser(shown, level, state, cond)
        return torch.where(mask, known, x0), state


class padded:  # noqa: N801
    """Tokens of pure noise behind the sequence, never denoised: a sequence of unknown length, of which only the
    beginning is wanted, shown to a network at the length that it was trained on.

    tail: [B, P, *E] standard normal. The result is that of P more columns in the matrix that stay at level K, with
    nothing computed about them and nothing to guide in them. ValueError for a causal denoiser, which never hears of
    what comes later: it makes a shorter sequence as it is.
    """

    causal = recurrent = False

    def __init__(self, denoiser: Denoiser, schedule: Schedule, tail: Tensor):
        if denoiser.causal:
            raise ValueError("padded() would change nothing for a causal denoiser, to which later tokens are unknown; "
                             "sample the shorter sequence as it is")
        self.denoiser, self.levels, self.tail = denoiser, schedule.levels, tail
        self.global_x0, self.init_state = denoiser.global_x0, denoiser.init_state

    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        raise ValueError("padded() wraps a denoiser that is not causal, which cannot absorb finished tokens")

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        time, tail = x.shape[1], fork(self.tail, len(x) // len(self.tail))  # draws of Monte Carlo guidance: n B rows
        noisy = torch.full((len(x), tail.shape[1]), self.levels, dtype=level.dtype, device=level.device)
        x0, state = self.denoiser(torch.cat([x, tail], 1), torch.cat([level, noisy], 1), state, cond)
        return x0[:, :time], state
