"""The base of every guidance wrapper: a denoiser around another one, which keeps all traits of the one inside."""

from typing import Any

from torch import Tensor, nn

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.tree import State


class Wrapper:
    """Forwards every trait, `init_state` and `absorb` to `denoiser`; a subclass defines only what it changes.

    Sequences that branch off one another are not forwarded, since a subclass changes estimates in `__call__`; samplers
    then evaluate such sequences by `__call__`, with equal results.
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
