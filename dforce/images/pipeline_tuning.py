"""A pretrained pipeline of diffusers tuned towards a reward: low-rank adapters, or the whole denoising network."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dforce.align import Sampler
from dforce.align.algorithms.common import Setup, reference_of
from dforce.align.monitor import Monitor
from dforce.align.rewards.protocol import Subject
from dforce.align.tuning_run import Look, PreparedTuning, resumed_state
from dforce.core.denoiser import Cond
from dforce.core.noise import Noise
from dforce.core.tree import map_state
from dforce.guidance.reporting import share_of
from dforce.guidance.wrapper import module_inside
from dforce.images.chosen_prompts import ChosenPrompts, with_held_out
from dforce.images.picture_tuning import PictureTuning
from dforce.images.pictures import by_prompt
from dforce.images.pipeline import Pipeline
from dforce.images.tuned_pipeline import adapt, open_pipeline, pipeline_store
from dforce.images.tuning_report import TunedModel
from dforce.runs.progress import Advance, no_advance
from dforce.runs.trackers import Shown

SCALED_ON = 32       # images of the base that several rewards are brought to one scale on
UNSEEN = "unseen_"   # of what the monitor measures on prompts that are never tuned on


@dataclass(frozen=True, kw_only=True)
class PipelineTuning(PictureTuning):
    """A run of `dforce align pipeline`. The keys are explained in configs/verbs/align/pipeline.yaml."""

    pipeline: str | None
    prompts: Any
    held_out: Any
    negative: str | None
    size: Any
    guidance: float
    hub: bool
    dtype: Literal["fp32", "bf16", "fp16"] | None

    def prepare(self) -> PreparedTuning:
        """Pipeline, prompts, reward and algorithm, or ValueError."""
        learnt, unseen = with_held_out(self.prompts, self.held_out, seed=self.seed, trust=self.trust)
        if self.lowrank is None and self.dtype in ("bf16", "fp16"):
            raise ValueError(f"all weights learn in fp32 (lowrank=null), got dtype={self.dtype}: give lowrank=4, whose "
                             "adapters are fp32 beside frozen weights, or leave dtype out")
        pipeline = open_pipeline(self.pipeline, hub=self.hub, dtype=self.dtype, device=self.device, size=self.size,
                                 negative=self.negative)
        table = prompt_table(pipeline, learnt, unseen)
        adapt(module_inside(pipeline.denoiser), self.lowrank, self.seed)
        sampler = self._sampler(pipeline, self.steps)
        reference = reference_of(sampler.denoiser)
        subject = Subject(image_shape(pipeline), seed=self.seed, device=sampler.schedule.alpha.device,
                          few=self.fast_dev_run)

        def drawn() -> tuple[Tensor, list[Any]]:
            labels = torch.arange(SCALED_ON) % len(learnt.texts)
            x = sampler.tokens(SCALED_ON, table.cond(labels), Noise(self.eval_seed + 2))
            return pipeline.decode(x).clamp(-1, 1), table.prompts_of(labels)

        rewards = self.rewards_for(subject, drawn)
        numbers = list(range(len(learnt.texts)))
        others = list(range(len(numbers), len(table.texts)))
        tuned = TunedModel(sampler, reference, rewards, None, Path(str(self.pipeline)).name, "prompts",
                           [str(text) for text in table.texts], table.texts, numbers, others, table.cond, by_prompt,
                           table.metadata, lambda x: pipeline.decode(x).clamp(-1, 1))
        aligning = self.algorithm.prepare(Setup(self._sampler(pipeline, self.tune_steps or self.steps), rewards.tuned,
                                                tuned.ask(numbers), decode=tuned.decode, seed=self.seed,
                                                rows=self.rows))
        about = self.record(self.pipeline, aligning, reward=rewards.name, prompts=tuned.names[:len(numbers)][:100])
        store = pipeline_store(pipeline, str(self.pipeline), whole=self.lowrank is None)
        return PreparedTuning(aligning, self._look(tuned), store, about, resumed_state(aligning, self.resume), tuned)

    def _sampler(self, pipeline: Pipeline, steps: int) -> Sampler:
        """Guidance inside."""
        made = pipeline.sampler(steps, guidance=self.guidance)
        return self.sampler(made.denoiser, made.schedule, made.matrix.to(made.schedule.alpha.device), pipeline.shape)

    def _look(self, tuned: TunedModel) -> Look | None:
        """The monitor of the prompts that are tuned on, and of those that are not, where there are some."""
        seen = self.monitor(tuned, tuned.learnt, seed=self.eval_seed + 1)
        unseen = self.monitor(tuned, tuned.others, seed=self.eval_seed + 1) if tuned.others else None
        return BothMonitors(seen, unseen) if seen and unseen else seen


class BothMonitors:
    """A monitor of prompts that are tuned on, and one of others, whose measures are called `unseen_...`."""

    def __init__(self, seen: Monitor, unseen: Monitor):
        self.seen, self.unseen, self.sampler = seen, unseen, seen.sampler

    @property
    def shown(self) -> Shown | None:
        """Some of the images of the last look."""
        return self.seen.shown

    def look(self, advance: Advance = no_advance) -> dict[str, float]:
        """The measures of both. advance: told the shares of the sampling."""
        one = share_of(advance, 0.5)
        return {**self.seen.look(one),
                **{UNSEEN + name: value for name, value in self.unseen.look(one).items()}}


@dataclass(frozen=True)
class PromptTable:
    """All prompts of a run, counted. metadata: of each, None where none has any."""

    texts: list[Any]
    metadata: list[Any] | None
    encode: Callable[[list[Any]], Cond | None]
    device: torch.device

    def prompts_of(self, labels: Tensor) -> list[Any]:
        """The prompts of these numbers."""
        return [self.texts[i] for i in labels.tolist()]

    @torch.no_grad()
    def cond(self, labels: Tensor) -> Cond | None:
        """Conditioning of images of the prompts of these numbers, each encoded once."""
        unique, place = labels.unique(return_inverse=True)
        cond = self.encode(self.prompts_of(unique))
        return map_state(lambda leaf: leaf[place.to(leaf.device)].to(self.device), cond) if cond else None


def prompt_table(pipeline: Pipeline, *sets: ChosenPrompts | None) -> PromptTable:
    """The prompts of all sets, in turn; ValueError for what the pipeline cannot encode."""
    texts = [text for each in sets if each for text in each.texts]
    metadata = [more for each in sets if each for more in each.metadata]
    pipeline.encode([*{type(text): text for text in texts}.values()])
    return PromptTable(texts, metadata if any(more is not None for more in metadata) else None,
                       pipeline.encode, pipeline.schedule.alpha.device)


@torch.no_grad()
def image_shape(pipeline: Pipeline) -> tuple[int, ...]:
    """(C, H, W) of a decoded image."""
    return tuple(pipeline.decode(torch.zeros(1, 1, *pipeline.shape, device=pipeline.schedule.alpha.device)).shape[2:])
