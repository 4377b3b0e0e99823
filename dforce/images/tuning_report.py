"""What an image model has gained and lost by tuning: it, the model begun with and best of n, in the same noise."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dforce.align import Sampler, best_of_n
from dforce.align.monitor import divergence, has_density
from dforce.align.on_policy import START_SALT, Ask, Query
from dforce.align.rewards.protocol import ask_reward
from dforce.align.rewards.store import Rewards
from dforce.core.denoiser import Cond, Denoiser
from dforce.core.noise import Noise
from dforce.core.tree import map_state
from dforce.guidance.reporting import reporting, share_of
from dforce.images.classifier import Classifier
from dforce.images.judge import SHARES, Judged, diversity_interval, judge, with_bounds
from dforce.report.rows import Row, difference_row, make_row
from dforce.report.statistics import bootstrap_interval, ratio_interval
from dforce.report.terminal import terminal_table
from dforce.runs.folder import RunFolder
from dforce.runs.progress import Advance

Tell = Callable[[float], object] | None  # as `Sampler.advance`

CHUNK = 4096   # runs at a time of best of n
UNREWARDED = (*SHARES, "moved")  # of single images; what else is measured of them is some reward
SHOWN = ("reward", "held_out_reward", *SHARES, "diversity_share", "diversity_overall_share", "kl",
         "reward_difference", "word_accuracy_difference")
CAPTIONS = {"before_after.png": "Before and after{best}, from the same noise{over}.",
            "not_tuned_on.png": "{kind} that were never tuned on, before and after{searched}{over}.",
            "watch.png": "What became of the policy; the dashed line is the model begun with."}


class TunedModel(NamedTuple):
    """A tuned model beside the one begun with. What its images can be asked for is counted: number i is `names[i]`."""

    sampler: Sampler          # of the tuned model
    reference: Denoiser       # the model begun with, under the sampler's guidance
    rewards: Rewards
    judge: Classifier | None  # of classes
    task: str                 # name of the data, or of the pipeline
    kind: str                 # what is asked for: "classes" or "prompts"
    names: Sequence[str]
    prompts: Sequence[Any]    # as rewards are given them: numbers of classes, or texts
    learnt: list[int]         # numbers of those tuned on
    others: list[int]         # of those that are judged only
    cond: Callable[[Tensor], Cond | None]  # numbers [B] -> conditioning
    picture: Callable[[Mapping[str, Judged], Tensor, Sequence[str]], Figure]  # (sets, number of each image, names)
    metadata: Sequence[Any] | None = None  # of every prompt
    decode: Callable[[Tensor], Tensor] | None = None  # tokens -> images [B, 1, C, H, W] in -1..1, None: as they are
    # (images, numbers) -> what else is measured of single images, [B] each
    measures: Callable[[Tensor, Tensor], dict[str, Tensor]] = lambda x, numbers: {}
    search_others: bool = False  # is best of n asked for those that are judged only, too?

    def ask(self, numbers: Sequence[int]) -> Ask:
        """Asks for as many images of every one of these as goes, in a random order."""
        def asked(count: int, generator: torch.Generator) -> Query:
            labels = torch.tensor(numbers)
            if count < len(labels):  # of more than are wanted, others every time
                labels = labels[torch.randperm(len(labels), generator=generator)]
            labels = labels.repeat(-(-count // len(labels)))[:count]
            return self.query(labels[torch.randperm(count, generator=generator)])
        return asked

    def query(self, labels: Tensor) -> Query:
        """The request for images of these numbers, [B]."""
        prompts, metadata = self.given(labels)
        return Query(prompts, self.cond(labels), metadata)

    def given(self, labels: Tensor) -> tuple[list[Any], list[Any] | None]:
        """Prompts and metadata of images of these numbers, as a reward takes them."""
        every = labels.tolist()
        return ([self.prompts[i] for i in every],
                None if self.metadata is None else [self.metadata[i] for i in every])

    def shown(self, x: Tensor) -> Tensor:
        """The images of tokens."""
        return self.decode(x) if self.decode else x


def write_report(tuned: TunedModel, folder: RunFolder, *, algorithm: str, count: int, best_of: int, seed: int,
                 advance: Advance) -> None:
    """Rows, episodes, pictures and the table, of `count` images of each model and best of `best_of` (0: none).

    advance: told the shares of the drawing.
    """
    rows: list[Row] = []
    searched = {"tuned on": best_of, "never tuned on": best_of if tuned.search_others else 0}
    total = 3 + best_of + (3 + searched["never tuned on"] if tuned.others else 0)  # images of one number: models, KL
    (folder.path / "episodes.jsonl").unlink(missing_ok=True)  # of the run before it was resumed
    for numbers, name in ((tuned.learnt, "tuned on"), (tuned.others, "never tuned on")):
        if not numbers:
            continue
        labels = torch.tensor(numbers).repeat(-(-count // len(numbers)))[:count].sort().values
        one = share_of(advance, 1 / total)
        sets = _sets(tuned, labels, seed, searched[name], one)
        variant = {"algorithm": algorithm, "reward": tuned.rewards.name, **(
            {tuned.kind: name} if tuned.others else {})}
        rows += rows_of_sets(sets, task=tuned.task, variant=variant)
        if has_density(tuned.sampler):
            rows.append(_kl(tuned, labels, seed, variant, one))
        for each in sets.values():
            folder.episodes(each.lines(task=tuned.task, names=tuned.names, kind=tuned.kind))
        file = "before_after" if name == "tuned on" else "not_tuned_on"
        tuned.picture(sets, labels, tuned.names).savefig(folder.media / f"{file}.png")
    folder.results(rows)
    best = {name: ", and the best of several before" if count else "" for name, count in searched.items()}
    words = {"kind": tuned.kind.capitalize(), "best": best["tuned on"], "searched": best["never tuned on"],
             "over": ", each over its reward" if tuned.kind == "prompts" else ""}
    folder.captions({file: text.format(**words) for file, text in CAPTIONS.items()})
    parts = [*tuned.rewards.parts, *(f"{name}_difference" for name in tuned.rewards.parts)]
    print(terminal_table([row for row in rows if row["metric"] in (*SHOWN, *parts)]))


def _sets(tuned: TunedModel, labels: Tensor, seed: int, best_of: int, one: Tell) -> dict[str, Judged]:
    """Both models, and the best of so many of the model begun with, all from the same noise. one: advance of each."""
    sampler = tuned.sampler._replace(advance=one)
    before = sampler._replace(denoiser=tuned.reference)
    cond, noise = _on(sampler, tuned.cond(labels)), Noise(seed)
    tokens = {"base": before.tokens(len(labels), cond, noise), "tuned": sampler.tokens(len(labels), cond, noise)}
    if best_of:
        first = next(iter(tuned.rewards.parts), None)
        tokens[f"best of {best_of}{f' by {first}' if first else ''}"] = _best(tuned, before, labels, best_of, seed)
    images = {name: tuned.shown(x) for name, x in tokens.items()}
    return {name: _judge(name, x, images["base"], labels, tuned) for name, x in images.items()}


def _on(sampler: Sampler, cond: Cond | None) -> Cond | None:
    """The conditioning on the sampler's device."""
    device = sampler.schedule.alpha.device
    return map_state(lambda leaf: leaf.to(device), cond) if cond else cond


def _best(tuned: TunedModel, before: Sampler, labels: Tensor, count: int, seed: int) -> Tensor:
    """Best of n from the noise of the others, by the first of several rewards; candidate 0 is the base's own image."""
    reward = next(iter(tuned.rewards.parts.values()), tuned.rewards.tuned)

    def score(x: Tensor) -> Any:
        prompts, metadata = tuned.given(labels.repeat(len(x) // len(labels)))
        return reward(tuned.shown(x), prompts, metadata or [None] * len(x))

    if before.std is not None or before.min_std > 0:
        raise ValueError("best of n samples by eta alone: with sde or min_std pass best_of=0")
    device, noise = before.schedule.alpha.device, Noise(seed)
    like = torch.empty(len(labels), *before.shape, device=device)
    start = noise(0, torch.arange(before.shape[0], device=device), like, salt=START_SALT)
    telling = reporting(before.denoiser, before.matrix, len(labels), before.advance)
    return best_of_n(telling, before.schedule, before.matrix, start, count, score, noise=noise, eta=before.eta,
                     cond=_on(before, tuned.cond(labels)), order=before.order, rows=before.rows or CHUNK).x


def _judge(name: str, x: Tensor, base: Tensor, labels: Tensor, tuned: TunedModel) -> Judged:
    given = tuned.given(labels)
    more = {"reward": ask_reward(tuned.rewards.tuned, x, *given)}
    more |= {part: ask_reward(reward, x, *given) for part, reward in tuned.rewards.parts.items()}
    more |= tuned.measures(x, labels)
    if tuned.rewards.held_out is not None:
        more["held_out_reward"] = ask_reward(tuned.rewards.held_out, x, *given)
    if x is not base:
        more["moved"] = (x.clamp(-1, 1) - base.clamp(-1, 1)).square().flatten(1).sum(1)
    if tuned.judge is not None:
        tuned.judge.cpu()
    return judge(name, x.cpu(), labels, classifier=tuned.judge, more={key: value.cpu() for key, value in more.items()})


def rows_of_sets(sets: dict[str, Judged], *, task: str, variant: dict[str, Any]) -> list[Row]:
    """Rows of every set; differences to the tuned one, if any, paired by noise; the share of diversity left."""
    tuned = sets.get("tuned")
    paired = [metric for metric in sets["base"].values if metric not in UNREWARDED]
    compared = [*paired, *(["word_accuracy"] if "word_accuracy" in sets["base"].values else [])]
    rows = [row for each in sets.values() for row in each.rows(task=task, variant=variant)]
    for row in rows:
        row["higher_is_better"] = True if row["metric"] in paired else row["higher_is_better"]
    rows += [difference_row(task, f"tuned - {name}", metric, tuned.values[metric], each.values[metric],
                            variant=variant, unit="paired by noise")
             for name, each in sets.items() if tuned and name != "tuned" for metric in compared]
    overall = {name: diversity_interval(each.x) for name, each in sets.items() if len(each.x) > 1}  # over all classes
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
    telling = tuned.sampler._replace(advance=one)
    _, nats = divergence(telling, tuned.reference, len(labels), _on(telling, tuned.cond(labels)), Noise(seed),
                         rows=telling.rows or CHUNK)
    return make_row(tuned.task, "tuned", "kl", bootstrap_interval(nats.cpu().numpy(), rng=np.random.default_rng(0)),
                    variant=variant, unit="nats of a run, to the base")
