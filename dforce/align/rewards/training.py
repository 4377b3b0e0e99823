"""Training of a reward from preference pairs or ratings, and what it got right on held-out data."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import numpy as np
import torch

from dforce.align.preferences import read_pairs
from dforce.align.rewards.learnt import FittedPairs, fit_bradley_terry
from dforce.align.rewards.network import RewardNet, flat
from dforce.align.rewards.ratings import FittedRatings, fit_rating, mean_ranks, read_ratings
from dforce.align.rewards.store import FOLDER, load_reward, save_reward
from dforce.report.plots.curves import loss_curve
from dforce.report.plots.monitor import margins_plot, ratings_plot
from dforce.report.rows import Row, make_row
from dforce.report.statistics import resampled, wilson_interval
from dforce.report.terminal import terminal_table
from dforce.runs.folder import RunFolder, Ticker

ONLY = {"pairs": ("width", "depth", "classes", "ignore"), "ratings": ("encoder", "hidden")}  # None elsewhere
RATE = {"pairs": 3e-3, "ratings": 1e-2}
LINES = 40  # of metrics.jsonl


@dataclass(frozen=True)
class RewardTraining:
    """A training of `dforce train reward`. The keys are explained in configs/verbs/train/reward.yaml."""

    data: str | None
    width: int | None
    depth: int | None
    classes: list[str] | None
    ignore: list[str] | None
    encoder: str | None
    hidden: int | None
    steps: int
    batch: int
    lr: float | None
    weight_decay: float
    held_out: float
    seed: int

    def run(self, folder: RunFolder, classifier: Callable[[str], Any]) -> None:
        """Learns, for `classifier`, the encoder of a name; the reward, its rows and pictures go into the run folder."""
        file, kind = self._file()
        fitted: FittedPairs | FittedRatings
        with Ticker(None, "train reward") as ticker:
            options: dict[str, Any] = {"steps": self.steps, "batch": self.batch,
                                       "held_out": self.held_out, "lr": self.lr or RATE[kind],
                                       "weight_decay": self.weight_decay, "seed": self.seed,
                                       "watch": _logger(folder, ticker)}
            if kind == "pairs":
                fitted = self._fit_pairs(file, options)
                rows = rows_of_pairs(fitted, file.name)
            else:
                torch.manual_seed(self.seed)
                fitted = fit_rating(encoder_of(self.encoder, classifier), read_ratings(file), hidden=self.hidden or 0,
                                    **options)
                rows = rows_of_ratings(fitted, file.name, self.encoder or "flat")
        folder.results(rows)
        folder.episodes(_lines(fitted))
        about = {row["metric"]: row["value"] for row in rows[:2]}  # held out, of the reward itself
        save_reward(folder.path / FOLDER, fitted.model, encoder=self.encoder, about={"data": str(self.data), **about})
        _draw(folder, fitted)
        print(terminal_table(rows))
        print(f"load_reward({str(folder.path)!r}) has it, as reward(samples, prompts, metadata) -> [B]")

    def _file(self) -> tuple[Path, str]:
        """The file, and whether it holds pairs or ratings. ValueError for settings that do not go with it."""
        if not self.data:
            raise ValueError("data is needed: an .npz file such as dforce.align.write_pairs or write_ratings makes, or "
                             "a folder with pairs.npz or ratings.npz")
        file = Path(self.data)
        if file.is_dir():
            there = [kind for kind in ONLY if (file / f"{kind}.npz").is_file()]
            if len(there) > 1:
                raise ValueError(f"{file} holds pairs.npz and ratings.npz: name one of them")
            file /= f"{there[0] if there else 'pairs'}.npz"
        kind = "ratings" if is_zipfile(file) and "rating.npy" in ZipFile(file).namelist() else "pairs"
        idle = [key for other, keys in ONLY.items() if other != kind for key in keys if getattr(self, key) is not None]
        if idle:
            raise ValueError(f"{', '.join(idle)} does nothing for {kind}: leave it out")
        return file, kind

    def _fit_pairs(self, file: Path, options: dict[str, Any]) -> FittedPairs:
        ignored = list(self.ignore or ())
        pairs = read_pairs(file, static=("class", *ignored))
        static = {name: value for name, value in ((pairs.cond or {}).get("static") or {}).items()
                  if name not in ignored}
        torch.manual_seed(self.seed)
        net = RewardNet(pairs.win.shape[1:], width=self.width or 32, depth=self.depth or 2,
                        classes=_classes(file, static.get("class"), self.classes))
        return fit_bradley_terry(net, pairs._replace(cond={"static": static} if static else None), **options)


def _classes(file: Path, label: torch.Tensor | None, names: list[str] | None) -> int | list[str]:
    """Classes that the array `class` counts: their names or number, 0 where there is no such array."""
    if label is None:
        if names:
            raise ValueError(f"classes were named, but {file} has no array class")
        return 0
    if label.ndim != 1 or label.is_floating_point() or int(label.min()) < 0:
        raise ValueError(f"{file}: class must be one whole number >= 0 for each pair, got {[*label.shape]}, "
                         f"{label.dtype}, least {float(label.min()):g}")
    if names and int(label.max()) >= len(names):
        raise ValueError(f"{file} has class {int(label.max())}, and classes names only {len(names)}")
    return list(map(str, names)) if names else int(label.max()) + 1


def encoder_of(name: str | None, classifier: Callable[[str], Any]) -> Any:
    """flat, the network of a learnt reward of pairs, or a classifier. CheckpointError where there is neither."""
    if name is None or name == "flat":
        return flat
    if any((Path(name) / part / "reward.json").is_file() for part in ("", FOLDER)):
        net = getattr(load_reward(name), "net", None)
        if net is None:
            raise ValueError(f"{name} is itself a head on an encoder: name a reward of pairs, or a classifier")
        return net
    return classifier(name)


def _logger(folder: RunFolder, ticker: Ticker) -> Callable[[Any], None]:
    def follow(log: Any) -> None:
        ticker.total = log.steps
        if log.step % max(log.steps // LINES, 1) == 0 or log.step == log.steps:
            folder.log(log.step, **log.metrics)
        ticker.advance()
    return follow


def rows_of_pairs(fitted: FittedPairs, name: str) -> list[Row]:
    """Pair accuracy with Wilson's interval, and the loss in nats (a guess has log 2 = 0.693), held out and not."""
    rows = []
    for side, margin in (("", fitted.margin), (" of those learnt from", fitted.trained)):
        values = margin.double().cpu().numpy()
        right = wilson_interval(int((values > 0).sum()), len(values))
        nats = resampled(lambda drawn: drawn.mean(1), np.logaddexp(0, -values), np.zeros(len(values)))
        method = f"reward of {name}", "bradley_terry"
        rows.append(make_row(*method, f"pair_accuracy{side}", right, unit="fraction", higher=True))
        rows.append(make_row(*method, f"pair_loss{side}", nats, unit="nats", higher=False))
    return rows


def rows_of_ratings(fitted: FittedRatings, name: str, encoder: str) -> list[Row]:
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

    seed, task, method = np.zeros(len(both)), f"reward of {name}", f"rating on {encoder}"
    mean = fitted.model.head.rating[0].item() + 1j * both.imag
    return [make_row(task, method, "rank_correlation", resampled(rank_correlation, both, seed), unit="Spearman",
                     higher=True),
            *(make_row(task, who, "error", resampled(error, values, seed), unit="root mean square, of a rating",
                       higher=False) for who, values in ((method, both), ("mean of the ratings", mean)))]


def _lines(fitted: FittedPairs | FittedRatings) -> list[dict[str, Any]]:
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
