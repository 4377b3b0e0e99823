"""Images of prompts from a pretrained pipeline, beside those of what was tuned of it, in the same noise."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from dforce.align.rewards.protocol import Reward, Subject, ask_reward
from dforce.align.rewards.store import named_reward
from dforce.core.noise import Noise
from dforce.guidance.reporting import share_of
from dforce.images.chosen_prompts import chosen_prompts
from dforce.images.judge import Judged, judge
from dforce.images.model import pixels
from dforce.images.pictures import by_prompt
from dforce.images.pipeline_tuning import PromptTable, image_shape, prompt_table
from dforce.images.tuned_pipeline import open_pipeline, tuned_pipelines
from dforce.images.tuning_report import rows_of_sets
from dforce.report.rows import Row
from dforce.report.terminal import terminal_table
from dforce.runs.folder import RunFolder, write_atomic
from dforce.runs.progress import bar

IMAGES = "images"  # folder of a run, in the layout of an imagefolder: files and metadata.jsonl


@dataclass(frozen=True, kw_only=True)
class PipelineSampling:
    """A run of `dforce sample pipeline`. The keys are explained in configs/verbs/sample/pipeline.yaml."""

    pipeline: Any
    prompts: Any
    lora: str | None
    count: int | None
    steps: int
    eta: float
    order: Literal[1, 2]
    guidance: float
    negative: str | None
    size: Any
    reward: str | None
    reward_settings: Mapping[str, Any] | None
    seed: int
    rows: int | None
    hub: bool
    dtype: Literal["fp32", "bf16", "fp16"] | None
    device: str | None = None
    trust: Any = None

    def prepare(self) -> "PreparedSampling":
        """Pipeline, prompts and reward, or ValueError."""
        prompts = chosen_prompts(self.prompts, trust=self.trust)
        pipeline = open_pipeline(self.pipeline, hub=self.hub, dtype=self.dtype, device=self.device, size=self.size,
                                 negative=self.negative)
        models = {"base": pipeline}
        if self.lora is not None:
            models = dict(zip(("base", "tuned"), tuned_pipelines(pipeline, self.lora), strict=True))
        reward = None
        if self.reward is not None:
            subject = Subject(image_shape(pipeline), seed=self.seed, device=pipeline.schedule.alpha.device,
                              settings=self.reward_settings)
            reward = named_reward(self.reward, subject, trust=self.trust).tuned
        labels = torch.arange(self.count or len(prompts.texts)) % len(prompts.texts)
        return PreparedSampling(models, prompt_table(pipeline, prompts), labels.sort().values, reward)


@dataclass(frozen=True)
class PreparedSampling:
    """models: name -> pipeline; labels: [N] the number of each image's prompt."""

    models: Mapping[str, Any]
    table: PromptTable
    labels: Tensor
    reward: Reward | None


def write_samples(sampling: PipelineSampling, prepared: PreparedSampling, folder: RunFolder) -> None:
    """Images as files, a picture of them, results.json, episodes.jsonl and the table."""
    sets: dict[str, Judged] = {}
    texts = [str(text) for text in prepared.table.texts]
    with bar("sample") as advance:
        for name in prepared.models:
            sets[name] = _drawn(sampling, prepared, name, share_of(advance, 1 / len(prepared.models)), sets)
    task = Path(str(sampling.pipeline)).name
    variant = {"steps": sampling.steps, "eta": sampling.eta, "guidance": sampling.guidance}
    rows = rows_of_sets(sets, task=task, variant=variant)
    _write_files(folder, sets, texts)
    for each in sets.values():
        folder.episodes(each.lines(task=task, names=texts, kind="prompts"))
    by_prompt(sets, prepared.labels, texts).savefig(folder.media / "samples.png")
    unit = f", each over its {sampling.reward} reward" if sampling.reward else ""
    folder.captions({"samples.png": ("Before and after tuning, from the same noise" if len(sets) > 1 else "Samples")
                     + f"{unit}."})
    folder.results(rows, summary=_summary(task, sets, rows))
    print(terminal_table(rows))


@torch.no_grad()
def _drawn(sampling: PipelineSampling, prepared: PreparedSampling, name: str, advance: Any,
           before: Mapping[str, Judged]) -> Judged:
    """Images of one pipeline, with their rewards, and how far they are from those of the first one."""
    pipeline, labels, table = prepared.models[name], prepared.labels, prepared.table
    sampler = pipeline.sampler(sampling.steps, guidance=sampling.guidance, eta=sampling.eta, order=sampling.order,
                               rows=sampling.rows, advance=advance)
    x = pipeline.decode(sampler.tokens(len(labels), table.cond(labels), Noise(sampling.seed))).clamp(-1, 1)
    more: dict[str, Tensor] = {}
    if prepared.reward is not None:
        metadata = None if table.metadata is None else [table.metadata[i] for i in labels.tolist()]
        more["reward"] = ask_reward(prepared.reward, x, table.prompts_of(labels), metadata).cpu()
    x = x.float().cpu()
    if before:
        more["moved"] = (x - before["base"].x).square().flatten(1).sum(1)
    return judge(name, x, labels, more=more)


def _write_files(folder: RunFolder, sets: Mapping[str, Judged], prompts: list[str]) -> None:
    """images/<number>_<set>.png, and metadata.jsonl with prompt, set and reward of each."""
    place, lines = folder.path / IMAGES, []
    place.mkdir()
    for name, each in sets.items():
        for i, image in enumerate(pixels(each.x)):
            file = f"{i:05d}_{name}.png"
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(place / file)
            values = {metric: float(values[i]) for metric, values in each.values.items()}
            lines.append({"file_name": file, "text": prompts[int(each.label[i])], "model": name, **values})
    write_atomic(place / "metadata.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _summary(task: str, sets: Mapping[str, Judged], rows: list[Row]) -> str:
    """How many images were drawn, and the mean reward of each set."""
    count = len(next(iter(sets.values())).x)
    means = "; ".join(f"{row['method']} {row['value']:.4g}" for row in rows if row["metric"] == "reward")
    return (f"{count} image{'s' * (count > 1)} of {task}{' before and after tuning' if len(sets) > 1 else ''}."
            + (f" Mean reward: {means}." if means else ""))
