"""What an image model has gained and lost by tuning: it, the model begun with and best of n, in the same noise."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.align import Sampler, best_of_n
from dforce.align.monitor import divergence, has_density
from dforce.align.on_policy import START_SALT
from dforce.align.rewards.protocol import ask_reward
from dforce.align.rewards.store import Rewards
from dforce.core.denoiser import Denoiser
from dforce.core.noise import Noise
from dforce.guidance.reporting import reporting, share_of
from dforce.images.classifier import Classifier
from dforce.images.judge import Judged, diversity_interval, judge, with_bounds
from dforce.images.model import ImageModel, class_cond
from dforce.images.pictures import side_by_side
from dforce.report.rows import Row, difference_row, make_row
from dforce.report.statistics import bootstrap_interval, ratio_interval
from dforce.report.terminal import terminal_table
from dforce.runs.folder import RunFolder
from dforce.runs.progress import Advance

Tell = Callable[[float], object] | None  # as `Sampler.advance`

ACROSS = 8     # images of a class in the picture
CHUNK = 4096   # runs at a time of best of n
UNREWARDED = ("class_accuracy", "moved")  # of single images; what else is measured of them is some reward
SHOWN = ("reward", "held_out_reward", "class_accuracy", "diversity_share", "diversity_overall_share", "kl",
         "reward_difference")
CAPTIONS = {"before_after.png": "Before and after, and the best of several before: the same noise at the same place.",
            "other_classes.png": "Classes that were never tuned on, before and after.",
            "watch.png": "What became of the policy; the dashed line is the model begun with."}


class TunedModel(NamedTuple):
    """A tuned model beside the one begun with."""

    sampler: Sampler          # of the tuned model
    reference: Denoiser       # the model begun with, under the sampler's guidance
    rewards: Rewards
    judge: Classifier | None  # of classes
    model: ImageModel         # the one begun with
    classes: list[int]        # numbers of those tuned on


def write_report(tuned: TunedModel, folder: RunFolder, *, algorithm: str, count: int, best_of: int, seed: int,
                 advance: Advance) -> None:
    """Rows, episodes, pictures and the table, of `count` images of each model and best of `best_of` (0: none).

    advance: told the shares of the drawing.
    """
    task, others = tuned.model.data, [i for i in range(len(tuned.model.classes)) if i not in tuned.classes]
    rows: list[Row] = []
    total = 3 + best_of + (3 if others else 0)  # images of one label: both models, KL and best of n; of others no best
    (folder.path / "episodes.jsonl").unlink(missing_ok=True)  # of the run before it was resumed
    for classes, name in ((tuned.classes, "tuned on"), (others, "never tuned on")):
        if not classes:
            continue
        labels = torch.tensor(classes).repeat(-(-count // len(classes)))[:count].sort().values
        one = share_of(advance, 1 / total)
        sets = _sets(tuned, labels, seed, best_of if name == "tuned on" else 0, one)
        variant = {"algorithm": algorithm, "reward": tuned.rewards.name, **({"classes": name} if others else {})}
        rows += rows_of_sets(sets, task=task, variant=variant)
        if has_density(tuned.sampler):
            rows.append(_kl(tuned, labels, seed, variant, one))
        for each in sets.values():
            folder.episodes(each.lines(task=task, classes=tuned.model.classes))
        _picture(sets, labels, tuned, folder, "before_after" if name == "tuned on" else "other_classes")
    folder.results(rows)
    folder.captions(CAPTIONS)
    parts = [*tuned.rewards.parts, *(f"{name}_difference" for name in tuned.rewards.parts)]
    print(terminal_table([row for row in rows if row["metric"] in (*SHOWN, *parts)]))


def _sets(tuned: TunedModel, labels: Tensor, seed: int, best_of: int, one: Tell) -> dict[str, Judged]:
    """Both models, and the best of so many of the model begun with, all from the same noise. one: advance of each."""
    sampler = tuned.sampler._replace(advance=one)
    before = sampler._replace(denoiser=tuned.reference)
    device = sampler.schedule.alpha.device
    cond, noise = class_cond(labels.to(device)), Noise(seed)
    images = {"base": before.tokens(len(labels), cond, noise), "tuned": sampler.tokens(len(labels), cond, noise)}
    if best_of:
        first = next(iter(tuned.rewards.parts), None)
        images[f"best of {best_of}{f' by {first}' if first else ''}"] = _best(
            tuned, before, labels, best_of, seed)
    return {name: _judge(name, x, images["base"], labels, tuned) for name, x in images.items()}


def _best(tuned: TunedModel, before: Sampler, labels: Tensor, count: int, seed: int) -> Tensor:
    """Best of n from the noise of the others, by the first of several rewards; candidate 0 is the base's own image."""
    reward = next(iter(tuned.rewards.parts.values()), tuned.rewards.tuned)

    def score(x: Tensor) -> Any:
        return reward(x, labels.repeat(len(x) // len(labels)).tolist(), [None] * len(x))

    if before.std is not None or before.min_std > 0:
        raise ValueError("best of n samples by eta alone: with sde or min_std pass best_of=0")
    device, noise = before.schedule.alpha.device, Noise(seed)
    like = torch.empty(len(labels), *before.shape, device=device)
    start = noise(0, torch.arange(before.shape[0], device=device), like, salt=START_SALT)
    telling = reporting(before.denoiser, before.matrix, len(labels), before.advance)
    return best_of_n(telling, before.schedule, before.matrix, start, count, score, noise=noise, eta=before.eta,
                     cond=class_cond(labels.to(device)), order=before.order, rows=CHUNK).x


def _judge(name: str, x: Tensor, base: Tensor, labels: Tensor, tuned: TunedModel) -> Judged:
    prompts = labels.tolist()
    more = {"reward": ask_reward(tuned.rewards.tuned, x, prompts)}
    more |= {part: ask_reward(reward, x, prompts) for part, reward in tuned.rewards.parts.items()}
    if tuned.rewards.held_out is not None:
        more["held_out_reward"] = ask_reward(tuned.rewards.held_out, x, prompts)
    if x is not base:
        more["moved"] = (x.clamp(-1, 1) - base.clamp(-1, 1)).square().flatten(1).sum(1)
    if tuned.judge is not None:
        tuned.judge.cpu()
    return judge(name, x.cpu(), labels, classifier=tuned.judge, more={key: value.cpu() for key, value in more.items()})


def rows_of_sets(sets: dict[str, Judged], *, task: str, variant: dict[str, Any]) -> list[Row]:
    """Rows of every set; differences of rewards to the tuned one, paired by noise; the share of diversity left."""
    tuned = sets["tuned"]
    paired = [metric for metric in tuned.values if metric not in UNREWARDED]
    rows = [row for each in sets.values() for row in each.rows(task=task, variant=variant)]
    for row in rows:
        row["higher_is_better"] = True if row["metric"] in paired else row["higher_is_better"]
    rows += [difference_row(task, f"tuned - {name}", metric, tuned.values[metric], each.values[metric],
                            variant=variant, unit="paired by noise")
             for name, each in sets.items() if name != "tuned" for metric in paired]
    overall = {name: diversity_interval(each.x) for name, each in sets.items()}  # over all classes
    rows += [make_row(task, name, "diversity_overall", with_bounds(spread), n=spread.n, variant=variant,
                      unit="squared distance of two samples") for name, spread in overall.items()]
    within = {name: diversity_interval(each.x, each.label) for name, each in sets.items()
              if int(each.label.bincount().max()) > 1}
    for metric, spreads in (("diversity", within), ("diversity_overall", overall)):
        for name, spread in spreads.items():
            if name != "base" and spread.value and spreads["base"].value:
                share = ratio_interval(spread, spreads["base"])  # wider than due, as the noise is shared
                rows.append(make_row(task, name, f"{metric}_share", with_bounds(share), n=share.n, variant=variant,
                                     unit="of the base's", higher=True))
    return rows


def _kl(tuned: TunedModel, labels: Tensor, seed: int, variant: dict[str, Any], one: Tell) -> Row:
    """The KL of the tuned model's runs to those of the model begun with."""
    cond = class_cond(labels.to(tuned.sampler.schedule.alpha.device))
    telling = tuned.sampler._replace(advance=one)
    _, nats = divergence(telling, tuned.reference, len(labels), cond, Noise(seed), rows=CHUNK)
    return make_row(tuned.model.data, "tuned", "kl", bootstrap_interval(nats.cpu().numpy(),
                                                                        rng=np.random.default_rng(0)),
                    variant=variant, unit="nats of a run, to the base")


def _picture(judged: dict[str, Judged], labels: Tensor, tuned: TunedModel, folder: RunFolder, name: str) -> None:
    sets: dict[str, Tensor] = {name: each.x for name, each in judged.items()}
    per_class = min(ACROSS, int(labels.bincount().max()))
    side_by_side(sets, labels, tuned.model.classes, per_class=per_class).savefig(folder.media / f"{name}.png")
