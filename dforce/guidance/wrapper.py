"""Guidance wrappers, denoisers around another one with the traits of the one inside: the base, and two simple ones."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.tree import State, map_state


class Wrapper:
    """Forwards every trait, `init_state` and `absorb` to `denoiser`; a subclass defines only what it changes.

    Sequences that branch off one another are not forwarded: samplers evaluate them by `__call__`, with equal results.
    """

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser

    @property
    def causal(self) -> bool:
        return self.denoiser.causal

    @property
    def recurrent(self) -> bool:
        return self.denoiser.recurrent

    @property
    def global_x0(self) -> bool:
        return self.denoiser.global_x0

    @property
    def keeps_chunk(self) -> bool:
        return self.denoiser.keeps_chunk

    def init_state(self, batch: int, cond: Cond | None = None) -> State:
        return self.denoiser.init_state(batch, cond)

    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        return self.denoiser.absorb(x, level, state, cond)

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        return self.denoiser(x, level, state, cond)

    def may_branch(self, x: Tensor) -> bool:
        return False

    def branched(self, x: Tensor, level: Tensor, state: State, begins: list[int], time: int, parents: list[int],
                 cond: Cond | None = None) -> tuple[Tensor, State, State]:
        raise ValueError(f"{type(self).__name__} takes no sequences that branch off one another")


class NonCausalWrapper(Wrapper):
    """A wrapper that sees whole sequences at once, so it absorbs no finished tokens and carries no state onwards."""

    @property
    def causal(self) -> bool:
        return False

    @property
    def recurrent(self) -> bool:
        return False

    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        raise ValueError(f"{type(self).__name__}() is shown whole sequences and cannot absorb finished tokens")


def innermost(denoiser: Any) -> Any:
    """The denoiser inside all wrappers around it."""
    while isinstance(denoiser, Wrapper):
        denoiser = denoiser.denoiser
    return denoiser


def module_inside(denoiser: Any) -> nn.Module:
    """The network inside all wrappers. ValueError if there is none: nothing could be trained."""
    module = innermost(denoiser)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{type(denoiser).__name__} holds no nn.Module, so there is nothing to train")
    return module


class clipped(Wrapper):
    """x0_hat clamped to [low, high] (data units), as pixel models do; gradients pass where nothing is clamped."""

    def __init__(self, denoiser: Denoiser, low: float = -1.0, high: float = 1.0):
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}")
        super().__init__(denoiser)
        self.low, self.high = low, high

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        x0, state = self.denoiser(x, level, state, cond)
        return x0.clamp(self.low, self.high), state


class conditioned(Wrapper):
    """The denoiser with further conditioning that is the same for every sequence, such as a distilled guidance scale.

    static: name -> one row [1, ...].
    """

    def __init__(self, denoiser: Denoiser, static: Mapping[str, Tensor]):
        super().__init__(denoiser)
        self.static = dict(static)

    def init_state(self, batch: int, cond: Cond | None = None) -> State:
        more = {name: row.expand(batch, *row.shape[1:]) for name, row in self.static.items()}
        return self.denoiser.init_state(batch, {**(cond or {}), "static": {**(cond or {}).get("static", {}), **more}})


class classifier_free(Wrapper):
    """Classifier-free guidance (Ho & Salimans 2022): x0 = x0(null) + scale (x0(cond) - x0(null)).

    null: the conditioning that training put in place of a dropped one, None where the network takes none; "static"
    entries [B, ...] (a negative prompt for each row) or [1, ...], "token" entries [1, 1, ...], for all tokens.
    one_forward: both in one forward of 2 B rows, wherever both take the same conditioning in the same shapes; the
    result is that of two forwards of B rows up to rounding.
    State: {"cond": ..., "null": ...}, the states with and without conditioning.
    """

    def __init__(self, denoiser: Denoiser, scale: float, null: Cond | None = None, *, one_forward: bool = True):
        super().__init__(denoiser)
        for name, value in ((null or {}).get("token") or {}).items():
            if value.shape[:2] != (1, 1):
                raise ValueError(f"null['token'][{name!r}] must be one entry for all tokens, [1, 1, ...], "
                                 f"got {[*value.shape]}")
        self.scale, self.null, self.one_forward = scale, null, one_forward

    def init_state(self, batch: int, cond: Cond | None = None) -> State:
        null = {**(self.null or {})}
        null["static"] = {name: value.expand(batch, *value.shape[1:]) if len(value) == 1 else value
                          for name, value in (null.get("static") or {}).items()}
        return {"cond": self.denoiser.init_state(batch, cond), "null": self.denoiser.init_state(batch, null)}

    def _without(self, cond: Cond | None) -> Cond:
        """`null` in the shapes of `cond`: samplers show any part of a sequence, in any number of copies."""
        null, present = (self.null or {}).get("token") or {}, (cond or {}).get("token") or {}
        return {"token": {name: null[name].expand_as(value) for name, value in present.items() if name in null}}

    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        return {"cond": self.denoiser.absorb(x, level, state["cond"], cond),
                "null": self.denoiser.absorb(x, level, state["null"], self._without(cond))}

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        bare = self._without(cond)
        shown = (state["cond"], {"token": (cond or {}).get("token") or {}}), (state["null"], bare)
        if self.one_forward and _alike(*shown):
            inner, token = map_state(lambda *both: torch.cat(both), *shown)
            x0, after = self.denoiser(torch.cat([x, x]), torch.cat([level, level]), inner, token)
            with_cond, without = x0.chunk(2)
            states = [map_state(lambda leaf, half=half: leaf.chunk(2)[half], after) for half in (0, 1)]
        else:
            with_cond, conditioned = self.denoiser(x, level, state["cond"], cond)
            without, unconditioned = self.denoiser(x, level, state["null"], bare)
            states = [conditioned, unconditioned]
        return without + self.scale * (with_cond - without), {"cond": states[0], "null": states[1]}


def _alike(one: State, other: State) -> bool:
    """Have both the same leaves, in the same shapes: can they be rows of one batch?"""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_alike(one[key], other[key])
                                                                             for key in one)
    if isinstance(one, (tuple, list)):
        return type(one) is type(other) and len(one) == len(other) and all(map(_alike, one, other))
    return one is None and other is None
