"""What tunings of image models and of pipelines share: sampling, rewards, the monitor, and the report at the end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from dforce.align import Sampler, cps, dance, flow_sde
from dforce.align.monitor import Monitor, reward_measures
from dforce.align.rewards.combined import Vote, Weighted, scales_of
from dforce.align.rewards.protocol import Subject, Watched
from dforce.align.rewards.store import Rewards, named_reward
from dforce.align.tuning_run import PreparedTuning, TuningRun
from dforce.config import require_name
from dforce.core.denoiser import Denoiser
from dforce.core.schedule import Schedule
from dforce.images.judge import accuracy, diversity
from dforce.images.tuning_report import TunedModel, write_report
from dforce.runs.folder import RunFolder
from dforce.runs.progress import bar

RULES: dict[str, Callable[..., Any]] = {"flow": flow_sde, "dance": dance, "cps": cps,
                                        "flow_published": partial(flow_sde, published=True),
                                        "dance_published": partial(dance, published=True)}
SCALED_ON = 200     # images of the base that several rewards are brought to one scale on


@dataclass(frozen=True, kw_only=True)
class PictureTuning(TuningRun):
    """The settings that both have: see configs/verbs/align/image.yaml."""

    reward: str
    rewards: Mapping[str, float] | None
    vote: Literal["rank", "majority"] | None
    reward_settings: Mapping[str, Any] | None
    held_out_reward: str | None
    steps: int
    tune_steps: int | None
    sde: str | None
    best_of: int
    fast_dev_run: bool = False

    def sampler(self, denoiser: Denoiser, schedule: Schedule, matrix: Tensor, shape: tuple[int, ...]) -> Sampler:
        """First order, as policy gradients want it; matrix: levels [steps + 1, 1]; shape: (C, H, W)."""
        if self.sde is not None:
            require_name(self.sde, RULES, "no sde")
        rule = None if self.sde is None else RULES[self.sde](schedule)
        return Sampler(denoiser, schedule, matrix, (1, *shape), eta=self.eta if rule is None else 0.0, std=rule,
                       min_std=self.min_std, rows=self.rows)

    def rewards_for(self, subject: Subject, draw: Callable[[], tuple[Tensor, list[Any]]]) -> Rewards:
        """The reward of the name, or of several the weighted sum at one scale, or vote. draw: images of the base and
        their prompts.
        """
        def reward_of(name: str) -> Watched:
            return named_reward(name, subject._replace(settings=self.reward_settings), trust=self.trust)

        judge = reward_of(self.held_out_reward).tuned if self.held_out_reward else None
        if self.rewards is None:
            if self.vote is not None:
                raise ValueError(f"vote={self.vote} is of several rewards: give rewards={{jpeg: 1, class: 1}}")
            tuned, held_out = reward_of(self.reward)
            return Rewards(self.reward, tuned, judge or held_out, {})
        weights = {str(name): float(weight) for name, weight in self.rewards.items()}
        if not weights:
            raise ValueError("rewards is empty: give {jpeg: 1, class: 0.5}, or reward alone")
        parts = {name: reward_of(name).tuned for name in weights}
        title = " + ".join(f"{weight:g} {name}" for name, weight in weights.items())
        if self.vote is not None:
            return Rewards(f"{self.vote} of {title}", Vote(parts, self.vote, weights=weights), judge, parts)
        return Rewards(title, Weighted(parts, weights, statistics=scales_of(parts, *draw())), judge, parts)

    def monitor(self, tuned: TunedModel, numbers: list[int], *, seed: int) -> Monitor | None:
        """Looks at reward, held-out reward, class accuracy and diversity of images of what has these numbers."""
        if not self.watch:
            return None
        judge, measures = tuned.judge, reward_measures(tuned.rewards)

        def labels_of(query: Any) -> Tensor:
            return torch.tensor([tuned.prompts.index(prompt) for prompt in query.prompts])

        if judge is not None:
            measures["class_accuracy"] = lambda x, query: accuracy(judge, x, labels_of(query).to(x.device))
        if self.watch > len(numbers):
            measures["diversity"] = lambda x, query: diversity(x.clamp(-1, 1).cpu(), labels_of(query))
        return Monitor(tuned.sampler, tuned.reference, tuned.ask(numbers), measures, samples=self.watch, seed=seed,
                       decode=tuned.decode)

    def finish(self, prepared: PreparedTuning, folder: RunFolder) -> None:
        """Images of both models, in the same noise."""
        tuned: TunedModel = prepared.data
        with bar("judge") as advance:
            write_report(tuned, folder, algorithm=prepared.aligning.name, seed=self.eval_seed, advance=advance,
                         count=self.evaluate, best_of=self.best_of)
