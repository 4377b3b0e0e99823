"""What a denoiser is, and `Precond`, which makes a raw network one."""

from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dforce.core.schedule import Schedule
from dforce.core.tree import State, fork

Cond = dict[str, dict[str, Tensor]]  # {"token": {name: [B, T, ...]}, "static": {name: [B, ...]}}


@runtime_checkable
class Denoiser(Protocol):
    """A map from noisy tokens to clean ones that carries a state past the last token, as `nn.GRU` does.

    It always answers with x0_hat. The properties are all that samplers ask before they choose a path; in a class that
    derives from this one every trait is False unless the class says otherwise.

    causal: x0_hat of token t depends on tokens <= t only, so prefixes may be absorbed and rollouts made.
    recurrent: the state has a constant size and a token costs one step of it, so a wavefront is possible.
    global_x0: x0_hat of a token depends on estimates of later ones (guidance), so all tokens must be shown.
    keeps_chunk: absorbed tokens count otherwise than shown ones (history guidance), so a chunk is absorbed as a whole.
    """

    @property
    def causal(self) -> bool:
        return False

    @property
    def recurrent(self) -> bool:
        return False

    @property
    def global_x0(self) -> bool:
        return False

    @property
    def keeps_chunk(self) -> bool:
        return False

    def init_state(self, batch: int, cond: Cond | None = None) -> State:
        """The state before the first token of `batch` sequences; reads cond["static"]."""

    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        """The state after finished tokens x [B, T, *E] at `level` [B, T]. No head, no guidance, no gradient."""

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        """x0_hat [B, T, *E] of noisy tokens x at `level` [B, T], and the state after the last of them."""

    def may_branch(self, x: Tensor) -> bool:
        """Does `branched` take tokens like x [B, T, *E]?"""
        return False

    def branched(self, x: Tensor, level: Tensor, state: State, begins: list[int], time: int, parents: list[int],
                 cond: Cond | None = None) -> tuple[Tensor, State, State]:
        """x0_hat of packed sequences that branch off one another, tokens [N, 1, *E]; see `Branching`."""
        raise ValueError(f"{type(self).__name__} takes no sequences that branch off one another")


@runtime_checkable
class Branching(Protocol):
    """A network that evaluates sequences that branch off one another side by side, such as `RecurrentNet`."""

    def may_branch(self, x: Tensor) -> bool:
        """Is `branched` faster for tokens like x?"""

    def branched(self, x: Tensor, label: Tensor, state: State, begins: list[int], time: int, parents: list[int],
                 cond: Cond | None = None) -> tuple[Tensor, State, State]:
        """See `dforce.nets.recurrent.RecurrentNet.branched`."""


class Precond(nn.Module):
    """Wraps a raw network so that it answers with x0_hat (Karras et al. 2022, section 5).

    net: (x, label, state, cond) -> (out, state), with label [B, T] from the schedule's table, and `init_state`. Its
    attributes `causal` (it then has `absorb` too), `recurrent` and `keeps_chunk` are False where it does not set them.
    predict: what `out` is: "x0" the clean token, "eps" the noise, "v" = alpha eps - sigma x0 (Salimans & Ho 2022),
    "flow" = eps - x0 (the velocity of the straight path).
    data_std: scales the input to unit variance, x / sqrt(alpha^2 data_std^2 + sigma^2); None passes x as it is.
    """

    global_x0 = False
    net: Any  # an nn.Module with init_state and absorb beside forward

    def __init__(self, net: nn.Module, schedule: Schedule, predict: Literal["x0", "eps", "v", "flow"] = "x0", *,
                 data_std: float | None = None):
        super().__init__()
        if predict not in ("x0", "eps", "v", "flow"):
            raise ValueError(f"predict must be 'x0', 'eps', 'v' or 'flow', got {predict!r}")
        if predict == "eps" and schedule.alpha[-1] == 0:
            raise ValueError("predict='eps' says nothing about x0 at a level of pure noise (alpha_K = 0); "
                             "use 'v', 'flow' or 'x0' with this schedule")
        self.net, self.schedule, self.predict, self.data_std = net, schedule, predict, data_std

    @property
    def causal(self) -> bool:
        return getattr(self.net, "causal", False)

    @property
    def recurrent(self) -> bool:
        return getattr(self.net, "recurrent", False)

    @property
    def keeps_chunk(self) -> bool:
        return getattr(self.net, "keeps_chunk", False)

    def init_state(self, batch: int, cond: Cond | None = None) -> State:
        return self.net.init_state(batch, cond)

    def _input(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        label = self.schedule.label[level].to(x.dtype)
        if self.data_std is None:
            return x, label
        alpha, sigma = self.schedule(level, x)
        return x / (alpha**2 * self.data_std**2 + sigma**2).sqrt().to(x.dtype), label

    @torch.no_grad()
    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        return self.remember(x, level, state, cond)

    def remember(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        """The state of `absorb` with its gradient: for training on states after clean tokens."""
        if not self.causal:
            raise ValueError(f"{type(self.net).__name__} is not causal, so it cannot absorb a finished prefix; "
                             "keep its finished tokens in the sequence (at level 0) instead")
        return self.net.absorb(*self._input(x, level), state, cond)

    def forward(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        if level.shape != x.shape[:2]:
            raise ValueError(f"level must be [B, T] = {[*x.shape[:2]]} for x {[*x.shape]}, got {[*level.shape]}")
        out, state = self.net(*self._input(x, level), state, cond)
        return self._answer(x, level, out), state

    def may_branch(self, x: Tensor) -> bool:
        """Does the network take sequences that branch off one another, for tokens like x?"""
        return isinstance(self.net, Branching) and self.net.may_branch(x)

    def branched(self, x: Tensor, level: Tensor, state: State, begins: list[int], time: int, parents: list[int],
                 cond: Cond | None = None) -> tuple[Tensor, State, State]:
        """x0_hat of the tokens [N, 1, *E] at `level` [N, 1] of such sequences; the states are the network's."""
        out, began, ended = self.net.branched(*self._input(x, level), state, begins, time, parents, cond)
        return self._answer(x, level, out), began, ended

    def _answer(self, x: Tensor, level: Tensor, out: Tensor) -> Tensor:
        """x0_hat from the prediction of the network."""
        out = out.to(x.dtype)  # a network under autocast answers in bfloat16; the algebra stays in float32
        if self.predict == "x0":
            return out
        alpha, sigma = (table.to(x.dtype) for table in self.schedule(level, x))
        match self.predict:
            case "eps":
                return (x - sigma * out) / alpha
            case "v":
                return alpha * x - sigma * out
            case _:
                return (x - sigma * out) / (alpha + sigma)


def slice_cond(cond: Cond | None, tokens: slice | Tensor) -> Cond | None:
    """The conditioning of some tokens only; static entries are kept."""
    if not cond or not cond.get("token"):
        return cond
    return {**cond, "token": {name: value[:, tokens] for name, value in cond["token"].items()}}


def fork_cond(cond: Cond | None, n: int) -> Cond | None:
    """n copies of the conditioning, the copy as the slow dimension, as in `dforce.core.tree.fork`."""
    return fork(cond, n) if cond else cond
