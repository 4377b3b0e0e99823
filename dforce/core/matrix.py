"""Schedule matrices: the noise level of every token at every row of sampling. A matrix is data, not an algorithm.

[M, T] or [M, B, T] integers in 0..K; a token's level (a column) never rises from one row to the next.
"""

import torch
from torch import Tensor


def pyramid(grid: Tensor, horizon: int, delay: int = 1) -> Tensor:
    """[M, T]: token t starts `delay * t` rows after token 0 (Chen et al. 2024, section 3.4, 'zig-zag').

    grid: [S + 1] levels from `Schedule.grid`. horizon: T tokens. delay: rows >= 0, the paper's uncertainty scale; 0 is
    full-sequence diffusion, S autoregressive; from S / 4 on a causal planner is right. M = S + delay (T - 1) + 1.
    """
    if delay < 0 or horizon < 1:
        raise ValueError(f"horizon must be >= 1 token and delay >= 0 rows, got horizon={horizon}, delay={delay}")
    steps = len(grid) - 1
    rows = torch.arange(steps + delay * (horizon - 1) + 1, device=grid.device)[:, None]
    return grid[(rows - delay * torch.arange(horizon, device=grid.device)).clamp(0, steps)]


def full_sequence(grid: Tensor, horizon: int) -> Tensor:
    """[S + 1, T]: every token at the same level, as in Diffuser and most video diffusion."""
    return pyramid(grid, horizon, delay=0)


def autoregressive(grid: Tensor, horizon: int) -> Tensor:
    """[S T + 1, T]: a token starts when the one before it is clean; next-token prediction."""
    return pyramid(grid, horizon, delay=len(grid) - 1)


def checked_matrix(matrix: Tensor, levels: int, *, horizon: int | None = None, complete: bool = True) -> Tensor:
    """`matrix` as int64; ValueError unless levels fall in its columns; complete: from pure noise to clean."""
    if matrix.ndim not in (2, 3) or len(matrix) < 2:
        raise ValueError(f"a schedule matrix is [M, T] or [M, B, T] with at least two rows, got {[*matrix.shape]}")
    if matrix.is_floating_point() or matrix.is_complex() or matrix.dtype == torch.bool:
        raise ValueError(f"a schedule matrix holds integer levels, got {matrix.dtype}")
    if horizon is not None and matrix.shape[-1] != horizon:
        raise ValueError(f"the matrix has {matrix.shape[-1]} tokens, the sequence {horizon}: give horizon={horizon}")
    if matrix.min() < 0 or matrix.max() > levels:
        raise ValueError(f"levels must lie in 0..{levels}, got {int(matrix.min())}..{int(matrix.max())}")
    rises = (matrix.diff(dim=0) > 0).nonzero()
    if len(rises):
        row, *at = rises[0].tolist()
        raise ValueError(f"a token's level may not rise: token {at[-1]} goes from {int(matrix[row, *at])} to "
                         f"{int(matrix[row + 1, *at])} at row {row + 1}; to noise a token again use renoise()")
    if complete and (matrix[0] != levels).any():
        got = matrix[0].flatten().tolist()[:8]
        raise ValueError(f"the first row must be noise, level {levels}, got {got}...; complete=False for a warm start")
    if complete and (matrix[-1] != 0).any():
        got = matrix[-1].flatten().tolist()[:8]
        raise ValueError(f"the last row must be clean (0), got {got}...; did you pass levels instead of a grid?")
    return matrix.long()
