"""`dforce train reward`: preference pairs or ratings to a reward that the other verbs can ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dforce.align.preferences import read_pairs
from dforce.align.rewards.learnt import FittedPairs, fit_bradley_terry
from dforce.align.rewards.network import RewardNet, flat
from dforce.align.rewards.ratings import FittedRatings, fit_rating, mean_ranks, read_ratings
from dforce.align.rewards.store import FOLDER as REWARD
from dforce.align.rewards.store import load_reward, needed_encoder, save_reward
from dforce.config import nearest
from dforce.images import load_classifier
from dforce.planning.scores import wilson_interval
from dforce.report.plots.curves import loss_curve
from dforce.report.plots.rewards import margins_plot, ratings_plot
from dforce.report.statistics import resampled
from dforce.report.table import markdown_table
from dforce.runs.folder import RunFolder, Ticker

KINDS = {"bradley_terry": "pairs.npz", "rating": "ratings.npz"}
ONLY = {"bradley_terry": ("width", "depth", "classes", "ignore"), "rating": ("encoder", "hidden")}  # null elsewhere
RATE = {"bradley_terry": 3e-3, "rating": 1e-2}
FEW = 10  # steps under fast_dev_run
LINES = 40  # of metrics.jsonl


def run(cfg: Any, folder: RunFolder) -> None:
    """Learns as cfg says; the reward, what it got right on held-out data, and the pictures go into the run folder."""
    file = _file(cfg)
    fitted: FittedPairs | FittedRatings
    with Ticker(None, "train reward") as ticker:
        options: dict[str, Any] = {"steps": FEW if cfg.fast_dev_run else cfg.steps, "batch": cfg.batch,
                                   "held_out": cfg.held_out, "lr": cfg.lr or RATE[cfg.kind],
                                   "weight_decay": cfg.weight_decay, "seed": cfg.seed,
                                   "watch": _watch(folder, ticker)}
        fitted = _of_pairs(cfg, file, options) if cfg.kind == "bradley_terry" else _of_ratings(cfg, file, options)
    rows = _pair_rows(fitted, file) if isinstance(fitted, FittedPairs) else _rating_rows(fitted, file, cfg)
    folder.results(rows)
    folder.episodes(_judged(fitted))
    about = {row["metric"]: row["value"] for row in rows[:2]}  # held out, of the reward itself
    save_reward(folder.path / REWARD, fitted.model, encoder=cfg.encoder, about={"data": str(cfg.data), **about})
    _draw(folder, fitted)
    print(markdown_table(rows))
    print(f"load_reward({str(folder.path)!r}) has it, as reward(samples, prompts, metadata) -> [B]")


def open_reward(where: str | Path) -> Any:
    """The learnt reward of a run folder, or of the reward/ folder in it, with its encoder. Raises CheckpointError."""
    name = needed_encoder(where)
    return load_reward(where, encoder=None if name is None else load_classifier(name))


def _file(cfg: Any) -> Path:
    """The file of pairs or ratings. ValueError for settings that do not go together."""
    if cfg.kind not in KINDS:
        raise ValueError(f"no reward of kind {cfg.kind!r}{nearest(cfg.kind, KINDS)}; kinds: {', '.join(KINDS)}")
    idle = [key for kind, keys in ONLY.items() if kind != cfg.kind for key in keys if cfg[key] is not None]
    if idle:
        raise ValueError(f"{', '.join(idle)} does nothing under kind={cfg.kind}: leave it out")
    if not cfg.data:
        raise ValueError(f"data is needed: an .npz file such as dforce.align.write_pairs makes, or a folder with "
                         f"{KINDS[cfg.kind]}")
    file = Path(cfg.data)
    return file / KINDS[cfg.kind] if file.is_dir() else file


def _of_pairs(cfg: Any, file: Path, options: dict[str, Any]) -> FittedPairs:
    ignored = list(cfg.ignore or ())
    pairs = read_pairs(file, static=("class", *ignored))
    static = {name: value for name, value in ((pairs.cond or {}).get("static") or {}).items() if name not in ignored}
    classes: int | list[str] = 0
    if "class" in static:
        label = static["class"]
        if label.ndim != 1 or label.is_floating_point() or int(label.min()) < 0:
            raise ValueError(f"{file}: class must be one whole number >= 0 for each pair, got {[*label.shape]}, "
                             f"{label.dtype}, least {float(label.min()):g}")
        classes = list(map(str, cfg.classes)) if cfg.classes else int(label.max()) + 1
        if cfg.classes and int(label.max()) >= len(cfg.classes):
            raise ValueError(f"{file} has class {int(label.max())}, and classes names only {len(cfg.classes)}")
    elif cfg.classes:
        raise ValueError(f"classes were named, but {file} has no array class")
    torch.manual_seed(cfg.seed)
    net = RewardNet(pairs.win.shape[1:], width=cfg.width or 32, depth=cfg.depth or 2, classes=classes)
    return fit_bradley_terry(net, pairs._replace(cond={"static": static} if static else None), **options)


def _of_ratings(cfg: Any, file: Path, options: dict[str, Any]) -> FittedRatings:
    ratings = read_ratings(file)
    torch.manual_seed(cfg.seed)
    return fit_rating(_encoder(cfg.encoder), ratings, hidden=cfg.hidden or 0, **options)


def _encoder(name: str | None) -> Any:
    """flat, the network of a learnt reward of pairs, or a classifier. CheckpointError where there is neither."""
    if name in (None, "flat"):
        return flat
    if any((Path(name) / part / "reward.json").is_file() for part in ("", REWARD)):
        net = getattr(load_reward(name), "net", None)
        if net is None:
            raise ValueError(f"{name} is itself a head on an encoder: name a reward of pairs, or a classifier")
        return net
    return load_classifier(name)


def _watch(folder: RunFolder, ticker: Ticker) -> Any:
    def watch(log: Any) -> None:
        ticker.total = log.steps
        if log.step % max(log.steps // LINES, 1) == 0 or log.step == log.steps:
            folder.log(log.step, **log.metrics)
        ticker.advance()
    return watch


def _pair_rows(fitted: FittedPairs, file: Path) -> list[dict[str, Any]]:
    """Pair accuracy with Wilson's interval, and the loss in nats (a guess has log 2 = 0.693), held out and not."""
    rows = []
    for side, margin in (("", fitted.margin), (" of those learnt from", fitted.trained)):
        values = margin.double().cpu().numpy()
        right = wilson_interval(int((values > 0).sum()), len(values))
        nats = resampled(lambda drawn: drawn.mean(1), np.logaddexp(0, -values), np.zeros(len(values)))
        for metric, found, unit, higher in (("pair_accuracy", right, "fraction", True),
                                            ("pair_loss", nats, "nats", False)):
            rows.append(_row(file, "bradley_terry", metric + side, found, unit, higher))
    return rows


def _rating_rows(fitted: FittedRatings, file: Path, cfg: Any) -> list[dict[str, Any]]:
    """Spearman's rank correlation, and the error beside that of always saying the mean, on the held-out samples."""
    both = fitted.predicted.double().numpy() + 1j * fitted.rated.double().numpy()  # resampled together

    def rank_correlation(drawn: np.ndarray) -> np.ndarray:
        sides = [np.stack([mean_ranks(torch.as_tensor(part)).numpy() for part in half])
                 for half in (drawn.real, drawn.imag)]
        one, other = (side - side.mean(1, keepdims=True) for side in sides)
        scale = np.sqrt((one**2).sum(1) * (other**2).sum(1))
        return np.divide((one * other).sum(1), scale, out=np.zeros(len(drawn)), where=scale > 0)

    def error(drawn: np.ndarray) -> np.ndarray:
        return np.sqrt(((drawn.real - drawn.imag) ** 2).mean(1))

    one, method = np.zeros(len(both)), f"rating on {cfg.encoder or 'flat'}"
    mean = fitted.model.head.rating[0].item() + 1j * both.imag
    return [_row(file, method, "rank_correlation", resampled(rank_correlation, both, one), "Spearman", True),
            _row(file, method, "error", resampled(error, both, one), "root mean square, of a rating", False),
            _row(file, "mean of the ratings", "error", resampled(error, mean, one),
                 "root mean square, of a rating", False)]


def _row(file: Path, method: str, metric: str, found: Any, unit: str, higher: bool) -> dict[str, Any]:
    return {"task": f"reward of {file.name}", "method": method, "variant": {}, "metric": metric,
            "value": found.value, "low": found.low, "high": found.high, "n": found.n, "seeds": 1, "unit": unit,
            "higher_is_better": higher}


def _judged(fitted: FittedPairs | FittedRatings) -> list[dict[str, Any]]:
    """One line for each held-out pair or sample."""
    if isinstance(fitted, FittedPairs):
        return [{"pair": i, "margin": value} for i, value in enumerate(fitted.margin.tolist())]
    return [{"sample": i, "predicted": predicted, "rated": rated} for i, (predicted, rated) in
            enumerate(zip(fitted.predicted.tolist(), fitted.rated.tolist(), strict=True))]


def _draw(folder: RunFolder, fitted: FittedPairs | FittedRatings) -> None:
    """media/loss.png from metrics.jsonl, and the picture of what is held out."""
    if not folder.writes:
        return
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text("utf-8").splitlines()]
    unit = "negative log-likelihood of a choice [nats]" if isinstance(fitted, FittedPairs) else "squared error"
    loss_curve([line["step"] for line in lines], [line["loss"] for line in lines], ylabel=unit).savefig(
        folder.media / "loss.png")
    if isinstance(fitted, FittedPairs):
        margins_plot(fitted.margin.tolist(), fitted.trained.tolist()).savefig(folder.media / "margins.png")
    else:
        ratings_plot(fitted.predicted.tolist(), fitted.rated.tolist()).savefig(folder.media / "ratings.png")
