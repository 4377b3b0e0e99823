"""A state is a value: any nest of dicts, lists, tuples and None around tensors whose first dimension is the batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

State = Any  # a pytree of tensors, batch first in every leaf


def map_state(fn: Callable[..., Tensor], *states: State) -> State:
    """Apply `fn` leaf by leaf to one or several states of equal structure."""
    first = states[0]
    if isinstance(first, Tensor):
        return fn(*states)
    if first is None:
        return None
    if isinstance(first, dict):
        return {key: map_state(fn, *(state[key] for state in states)) for key in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(map_state(fn, *leaves) for leaves in zip(*states, strict=True)))
    if isinstance(first, (list, tuple)):
        return type(first)(map_state(fn, *leaves) for leaves in zip(*states, strict=True))
    raise TypeError(f"a state is made of tensors, dicts, lists and tuples, got a {type(first).__name__}")


def private(value: Any) -> Any:
    """A copy for a caller's function, which may write into its tensors, arrays and containers; the rest as it is."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: private(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        copies = [private(each) for each in value]
        return type(value)(*copies) if hasattr(value, "_fields") else type(value)(copies)
    return value.copy() if hasattr(value, "__array_interface__") else value


def leaves(state: State) -> list[Tensor]:
    """The tensors of a state, in order."""
    tensors: list[Tensor] = []

    def keep(leaf: Tensor) -> Tensor:
        tensors.append(leaf)
        return leaf

    map_state(keep, state)
    return tensors


def fork(state: State, n: int) -> State:
    """n copies of every row, the copy as the slow dimension: [B, ...] -> [n * B, ...]."""
    return map_state(lambda leaf: leaf.repeat(n, *(1,) * (leaf.ndim - 1)), state)


def select(state: State, rows: Tensor) -> State:
    """The rows `rows` [N] of every leaf (indices or a boolean mask): permuting, resampling, shrinking a batch."""
    return map_state(lambda leaf: leaf[rows], state)


def reset(state: State, fresh: State, where: Tensor) -> State:
    """`fresh` in the rows where `where` [B] is true, `state` elsewhere: those episodes of a batch begin anew."""
    return map_state(lambda old, new: torch.where(where.view(-1, *(1,) * (old.ndim - 1)), new.to(old.dtype), old),
                     state, fresh)
