"""Does a model tell more of the next frame than the last one does? Its error from noise beside that of copying."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dforce.core.loss import corrupt
from dforce.core.noise import Noise
from dforce.report.rows import Row
from dforce.report.statistics import bootstrap_of
from dforce.report.table import value_with_interval
from dforce.video.metrics.measure import RowMaker
from dforce.video.model import VideoModel

WINDOWS = 64
MADE, KEPT = "error from noise", "error of copying"  # metrics: root mean squares, and the first over the second
RATIO = "error / copying"


@torch.no_grad()
def errors_from_noise(model: VideoModel, frames: Tensor, actions: Tensor | None, seed: int = 0) -> tuple[Tensor,
                                                                                                       Tensor]:
    """Mean square error [B] of the last token of clips [B, T, C, H, W] from pure noise, after its true past, and of the
    token before it as a guess; of a causal model, and two tokens or more."""
    tokens, cond = model.tokens(frames.to(model.device)), model.cond(actions if actions is None else
                                                                     actions.to(model.device))
    level = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    level[:, -1] = model.schedule.levels
    noise = Noise(seed)(0, torch.arange(tokens.shape[1], device=tokens.device), tokens)
    x0, _ = model.denoiser(corrupt(model.schedule, tokens, level, noise), level,
                           model.denoiser.init_state(len(tokens), cond), cond)
    guess, truth = model.frames(x0[:, -1:]).cpu(), frames[:, -model.stack:].cpu()
    return tuple((each - truth).square().flatten(1).mean(1)  # type: ignore[return-value]
                 for each in (guess, frames[:, -2 * model.stack:-model.stack].cpu()))


def copying_rows(model: VideoModel, windows: Callable[[int], tuple[Tensor, Tensor | None]], maker: RowMaker, *,
                 seed: int = 0) -> list[Row]:
    """Rows of the root mean square of both errors, and of their ratio with its bootstrap over windows.

    windows: step -> frames [B, T, C, H, W] and actions of held-out clips, of which WINDOWS are taken. No rows for a
    model that makes no frame after its past alone, and for windows of one token.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    while model.denoiser.causal and sum(len(each) for each, _ in parts) < WINDOWS:
        frames, actions = windows(len(parts))
        if frames.shape[1] < 2 * model.stack:
            break
        parts.append(errors_from_noise(model, frames, actions, seed))
    if not parts:
        return []
    made, kept = (torch.cat(each) for each in zip(*parts, strict=True))

    def ratio(chosen: np.ndarray) -> float:
        return float((made[chosen].mean() / kept[chosen].mean().clamp(min=1e-12)).sqrt())

    size, unit = len(made), "-1..1"
    return [maker.row(RATIO, bootstrap_of(ratio, size, rng=np.random.default_rng(seed)), unit="times", higher=False),
            maker.row(MADE, float(made.mean().sqrt()), n=size, unit=unit, higher=False),
            maker.real().row(KEPT, float(kept.mean().sqrt()), n=size, unit=unit, higher=False)]


def copying_sentence(rows: list[Row]) -> str:
    """What these rows say, in a sentence or two; "" where they are not among `rows`."""
    by_name = {row["metric"]: row for row in rows}
    if RATIO not in by_name or by_name[RATIO]["value"] is None:
        return ""
    row, errors = by_name[RATIO], [value_with_interval(by_name[name], 3) for name in (MADE, KEPT)]
    both = (f"a frame made from noise errs {errors[0]}, one that repeats the last {errors[1]} "
            f"({value_with_interval(row, 2)} times)")
    if (row["value"] if row["high"] is None else row["high"]) < 1:  # type: ignore[operator]
        return f"On held-out clips {both}."
    return (f"The model is no better than keeping the last frame: on held-out clips {both}. Its rollouts are not to be "
            "trusted; train longer, on more clips, or at another size.")
