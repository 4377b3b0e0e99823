"""A denoiser that says how far sampling with it has come."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.tree import State
from dforce.guidance.wrapper import Wrapper


class Reporting(Wrapper):
    """The same denoiser; advance(B / rows) is called at every call with B rows."""

    def __init__(self, denoiser: Denoiser, rows: int, advance: Callable[[float], object]):
        super().__init__(denoiser)
        self.rows, self.advance = rows, advance

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        answer = self.denoiser(x, level, state, cond)
        self.advance(len(x) / self.rows)
        return answer


def reporting(denoiser: Denoiser, matrix: Tensor, batch: int, advance: Callable[[float], object] | None) -> Denoiser:
    """The denoiser for sampling `batch` rows along a matrix [M, T]: the shares of the work that are told add up to 1.

    advance: None for the denoiser as it is.
    """
    if advance is None:
        return denoiser
    calls = len(matrix) - 1  # with all rows each; a wavefront shows each token from its first move on, till it is done
    if denoiser.recurrent and not denoiser.global_x0 and matrix.shape[1] > 1:
        moves, number = matrix[:-1] != matrix[1:], torch.arange(1, len(matrix), device=matrix.device)[:, None]
        first = torch.where(moves, number, len(matrix)).amin(0)
        calls = int(((moves * number).amax(0) - first + 2).sum())
    return Reporting(denoiser, calls * batch, advance)


A = TypeVar("A", Callable[[float], object], Callable[[float], object] | None)


def share_of(advance: A, share: float) -> A:
    """The callback of work that is a share of other work."""
    return None if advance is None else lambda part: advance(share * part)
