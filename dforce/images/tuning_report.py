"""What an image model has gained and lost by tuning: it, the model begun with and best of n, in the same noise."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.align import Sampler, best_of_n
from dforce.align.monitor import divergence, has_density
from dforce.align.on_policy import START_SALT
from dforce.align.rewards.protocol import ask_reward
from dforce.core.denoiser import Denoiser
from dforce.core.noise import Noise
from dforce.images.classifier import Classifier
from dforce.images.judge import Judged, judge
from dforce.images.metrics import diversity_interval
from dforce.images.model import ImageModel, class_cond
from dforce.images.pictures import side_by_side
from dforce.images.rewards import Rewards
from dforce.report.statistics import Z95, bootstrap_interval, paired_difference
from dforce.report.table import markdown_table
from dforce.runs.folder import RunFolder, write_atomic

ACROSS = 8     # images of a class in the picture
CHUNK = 4096   # runs at a time of best of n
UNREWARDED = ("class_accuracy", "moved")  # of single images; what else is measured of them is some reward
Row = dict[str, Any]


class Draws(NamedTuple):
    """What is compared. sampler: of the tuned model; reference: the model begun with, guidance inside, as it is there.
    judge: who judges classes, None for nobody; classes: numbers of those tuned on, of `model`."""

    sampler: Sampler
    reference: Denoiser
    rewards: Rewards
    judge: Classifier | None
    model: ImageModel
    classes: list[int]


def judged(draws: Draws, cfg: Any, folder: RunFolder) -> None:
    """results.json, episodes.jsonl, media/before_after.png and the table. Of cfg: evaluate, best_of, eval_seed."""
    count = 2 * len(draws.model.classes) if cfg.fast_dev_run else cfg.evaluate
    best_of = min(cfg.best_of, 2) if cfg.fast_dev_run else cfg.best_of
    others = [number for number in range(len(draws.model.classes)) if number not in draws.classes]
    rows: list[Row] = []
    (folder.path / "episodes.jsonl").unlink(missing_ok=True)  # of the run before it was resumed
    for classes, name in ((draws.classes, "tuned on"), (others, "never tuned on")):
        if not classes:
            continue
        labels = torch.tensor(classes).repeat(-(-count // len(classes)))[:count].sort().values
        found = _sets(draws, labels, cfg.eval_seed, best_of if name == "tuned on" else 0)
        variant = {"algorithm": cfg.algorithm, "reward": draws.rewards.name, **({"classes": name} if others else {})}
        rows += compared(found, task=draws.model.data, variant=variant)
        rows.append(_kl(draws, labels, cfg.eval_seed, variant))
        for each in found.values():
            folder.episodes(each.lines(task=draws.model.data, classes=draws.model.classes))
        _picture(found, labels, draws, folder, "before_after" if name == "tuned on" else "other_classes")
    folder.results([row for row in rows if row["value"] is not None])
    write_atomic(folder.media / "captions.json", json.dumps(CAPTIONS) + "\n")
    parts = [*draws.rewards.parts, *(f"{name}_difference" for name in draws.rewards.parts)]
    shown = [row for row in rows if row["metric"] in (*SHOWN, *parts)]
    print(markdown_table(shown))


def _sets(draws: Draws, labels: Tensor, seed: int, best_of: int) -> dict[str, Judged]:
    """Both models, and the best of so many of the model begun with, all from the same noise."""
    sampler, before = draws.sampler, draws.sampler._replace(denoiser=draws.reference)
    device = sampler.schedule.alpha.device
    cond, noise = class_cond(labels.to(device)), Noise(seed)
    images = {"base": before.tokens(len(labels), cond, noise), "tuned": sampler.tokens(len(labels), cond, noise)}
    if best_of:
        first = next(iter(draws.rewards.parts), None)
        images[f"best of {best_of}{f' by {first}' if first else ''}"] = _best(draws, before, labels, best_of, seed)
    return {name: _judge(name, x, images["base"], labels, draws) for name, x in images.items()}


def _best(draws: Draws, before: Sampler, labels: Tensor, count: int, seed: int) -> Tensor:
    """Best of n begins where the others begin; its first candidate is the base's own image. Of several rewards it has
    the first alone to look at: no other choice of n is better by that one."""
    reward = next(iter(draws.rewards.parts.values()), draws.rewards.tuned)

    def score(x: Tensor) -> Any:
        return reward(x, labels.repeat(len(x) // len(labels)).tolist(), [None] * len(x))

    if before.std is not None or before.min_std > 0:
        raise ValueError("best of n samples by eta alone: with sde or min_std pass best_of=0")
    device, noise = before.schedule.alpha.device, Noise(seed)
    like = torch.empty(len(labels), *before.shape, device=device)
    start = noise(0, torch.arange(before.shape[0], device=device), like, salt=START_SALT)
    return best_of_n(before.denoiser, before.schedule, before.matrix, start, count, score, noise=noise, eta=before.eta,
                     cond=class_cond(labels.to(device)), order=before.order, rows=CHUNK).x


def _judge(name: str, x: Tensor, base: Tensor, labels: Tensor, draws: Draws) -> Judged:
    prompts = labels.tolist()
    more = {"reward": ask_reward(draws.rewards.tuned, x, prompts)}
    more |= {part: ask_reward(reward, x, prompts) for part, reward in draws.rewards.parts.items()}
    if draws.rewards.held_out is not None:
        more["held_out_reward"] = ask_reward(draws.rewards.held_out, x, prompts)
    if x is not base:
        more["moved"] = (x.clamp(-1, 1) - base.clamp(-1, 1)).square().flatten(1).sum(1)
    if draws.judge is not None:
        draws.judge.cpu()
    return judge(name, x.cpu(), labels, classifier=draws.judge, more={key: value.cpu() for key, value in more.items()})


def compared(found: dict[str, Judged], *, task: str, variant: dict[str, Any]) -> list[Row]:
    """Rows of every set; differences of rewards to the tuned one, paired by noise; the share of diversity left."""
    paired = [metric for metric in found["tuned"].values if metric not in UNREWARDED]
    rows = [{**row, "higher_is_better": True if row["metric"] in paired else row["higher_is_better"]}
            for each in found.values() for row in each.rows(task=task, variant=variant)]
    for other, against in found.items():
        if other == "tuned":
            continue
        for metric in paired:
            gap = paired_difference(found["tuned"].values[metric], against.values[metric])
            rows.append(_row(task, f"tuned - {other}", variant, f"{metric}_difference", gap._asdict(),
                             "paired by noise", True))
    for name, each in found.items():  # over all classes, beside that within a class
        rows.append(_row(task, name, variant, "diversity_overall", diversity_interval(each.x)._asdict(),
                         "squared distance of two samples", None))
    for metric in ("diversity", "diversity_overall"):
        spread = {row["method"]: row for row in rows if row["metric"] == metric}
        if spread:
            rows += [_row(task, name, variant, f"{metric}_share", _share(spread[name], spread["base"]),
                          "of the base's", True) for name in found if name != "base"]
    return rows


def _share(a: Row, b: Row) -> dict[str, Any]:
    """a / b with a 95% interval, on the log scale, as if both were independent: wider than due, as noise is shared."""
    if not b["value"] or not a["value"]:
        return {"value": None, "low": None, "high": None, "n": a["n"]}
    if None in (a["low"], b["low"]):  # two samples of each class have a distance, and no interval
        return {"value": a["value"] / b["value"], "low": None, "high": None, "n": a["n"]}
    sizes = [(row["high"] - row["low"]) / 2 / Z95 / row["value"] for row in (a, b)]
    ratio, width = a["value"] / b["value"], Z95 * math.hypot(*sizes)
    return {"value": ratio, "low": ratio * math.exp(-width), "high": ratio * math.exp(width), "n": a["n"]}


def _kl(draws: Draws, labels: Tensor, seed: int, variant: dict[str, Any]) -> Row:
    """The KL of the tuned model's runs to those of the model begun with; None where runs have no density."""
    sampler, estimate = draws.sampler, {"value": None, "low": None, "high": None, "n": len(labels)}
    if has_density(sampler):
        cond = class_cond(labels.to(sampler.schedule.alpha.device))
        _, nats = divergence(sampler, draws.reference, len(labels), cond, Noise(seed), rows=CHUNK)
        estimate = bootstrap_interval(nats.cpu().numpy(), rng=np.random.default_rng(0))._asdict()
    return _row(draws.model.data, "tuned", variant, "kl", estimate, "nats of a run, to the base", None)


def _row(task: str, method: str, variant: dict[str, Any], metric: str, estimate: dict[str, Any], unit: str,
         higher: bool | None) -> Row:
    return {"task": task, "method": method, "variant": variant, "metric": metric, **estimate, "seeds": 1, "unit": unit,
            "higher_is_better": higher}


def _picture(found: dict[str, Judged], labels: Tensor, draws: Draws, folder: RunFolder, name: str) -> None:
    sets: dict[str, Tensor] = {each: found[each].x for each in found}
    per_class = min(ACROSS, int(labels.bincount().max()))
    side_by_side(sets, labels, draws.model.classes, per_class=per_class).savefig(folder.media / f"{name}.png")


SHOWN = ("reward", "held_out_reward", "class_accuracy", "diversity_share", "diversity_overall_share", "kl",
         "reward_difference")
CAPTIONS = {"before_after.png": "Before and after, and the best of several before: the same noise at the same place.",
            "other_classes.png": "Classes that were never tuned on, before and after.",
            "watch.png": "What became of the policy; the dashed line is the model begun with."}
