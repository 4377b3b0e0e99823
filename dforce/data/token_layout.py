"""Tokens of several kinds in turn: each part of an observation is a token, then a chunk of actions: o, a, o, a, ...

A token has one noise level, so what may be missing or noisy alone (a camera, the arm's joints) is a token of its own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

KIND = "kind"  # name of the conditioning that tells a network what a token is


@dataclass(frozen=True)
class TokenLayout:
    """What the numbers of a policy's tokens mean. All tokens are padded to one width E with zeros, which are data too:
    they are noised and denoised as all entries are, so a network learns to put zeros there.

    parts: name -> width of every part of an observation, in the order of their tokens.
    action: width of an action. chunk: actions of an action token.
    An action token holds the actions between two observations, one after another: one of fewer than `chunk` actions is
    padded, and its kind says how many there are. The kind of a token is [cycle]: 1 at the part that it holds, and for
    actions, at the last place, their number as a share of `chunk`.
    """

    parts: dict[str, int]
    action: int
    chunk: int

    def __post_init__(self) -> None:
        if not self.parts or min(*self.parts.values(), self.action, self.chunk) < 1:
            raise ValueError(f"a layout has parts of an observation, an action and a chunk of at least one number each,"
                             f" got parts={self.parts}, action={self.action}, chunk={self.chunk}")

    @property
    def cycle(self) -> int:
        """Tokens from one observation to the next."""
        return len(self.parts) + 1

    @property
    def width(self) -> int:
        """E, numbers of a token."""
        return max(*self.parts.values(), self.chunk * self.action)

    @cached_property
    def columns(self) -> dict[str, slice]:
        """Name of a part -> its columns in an observation as one vector [O]."""
        ends = torch.tensor([0, *self.parts.values()]).cumsum(0).tolist()
        return {name: slice(*ends[i:i + 2]) for i, name in enumerate(self.parts)}

    def padded(self, value: Tensor) -> Tensor:
        """The token [..., E] that holds `value` [..., D]."""
        return F.pad(value, (0, self.width - value.shape[-1]))

    def action_token(self, actions: Tensor, count: Tensor) -> Tensor:
        """The token [..., E] of the first `count` [...] of actions [..., chunk, A]."""
        kept = torch.arange(self.chunk, device=count.device) < count[..., None]
        return self.padded((actions * kept[..., None]).flatten(-2))

    def actions_of(self, token: Tensor) -> Tensor:
        """The actions [..., chunk, A] of action tokens [..., E]."""
        return token[..., :self.chunk * self.action].unflatten(-1, (self.chunk, self.action))

    def kind(self, place: int, share: Tensor) -> Tensor:
        """[..., cycle]: the kind of a token at `place` of the cycle; share: [...], 1, or for actions count / chunk."""
        return F.one_hot(torch.tensor(place, device=share.device), self.cycle) * share[..., None].float()

    def sequence(self, observations: Tensor, actions: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, C * cycle, E] and their kinds [B, C * cycle, cycle].

        observations: [B, C, O]. actions: [B, C, chunk, A], those that follow each of them; count: [B, C], how many.
        """
        whole = torch.ones_like(count)
        tokens = [self.padded(observations[..., columns]) for columns in self.columns.values()]
        kinds = [self.kind(place, whole) for place in range(len(tokens))]
        tokens.append(self.action_token(actions, count))
        kinds.append(self.kind(len(kinds), count / self.chunk))
        return torch.stack(tokens, 2).flatten(1, 2), torch.stack(kinds, 2).flatten(1, 2)


def parts_of(names: Sequence[str]) -> dict[str, int]:
    """The parts of an observation by the names of its columns: one for each key of a Dict space, else a single one."""
    keys = [re.fullmatch(r"observation\.(.+?)(\[.+\]|==.*)", name) for name in names]
    if not all(keys):
        return {"observation": len(names)}
    parts: dict[str, int] = {}
    for key in keys:
        assert key is not None
        parts[key[1]] = parts.get(key[1], 0) + 1
    return parts
