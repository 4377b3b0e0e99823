"""Images of chosen classes from several models in the same noise, side by side and judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dforce.align.rewards.builtin import Jpeg
from dforce.core.files import replacing
from dforce.images.classifier import Classifier
from dforce.images.judge import find_judge, judge, readings
from dforce.images.model import ImageModel, draw, load_models
from dforce.images.pictures import side_by_side
from dforce.report.rows import Row
from dforce.report.terminal import terminal_table
from dforce.runs.folder import RunFolder, Ticker

ACROSS = 16  # images of a class in the picture


@dataclass(frozen=True)
class ImageSampling:
    """A run of `dforce sample image`. The keys are explained in configs/verbs/sample/image.yaml."""

    checkpoint: Any
    classes: Any
    per_class: int
    seed: int
    steps: int
    eta: float
    order: Literal[1, 2]
    guidance: float | None
    classifier: Any
    raw: bool
    trust: Any = None

    def run(self, folder: RunFolder) -> None:
        """Draws from every checkpoint: samples.npz (x [models, N, C, H, W]), a picture, results, episodes, a table."""
        models = {name: model.telling(self.classes) for name, model in
                  load_models(self.checkpoint, raw=self.raw, trust=self.trust).items()}
        first, classifier = next(iter(models.values())), find_judge(self.classifier, models)
        per_class, steps = self.per_class, self.steps
        if per_class < 1:
            raise ValueError(f"per_class must be at least 1, got {per_class}")
        labels = torch.tensor(first.choice(self.classes, "report")).repeat_interleave(per_class)
        drawn: dict[str, Tensor] = {}
        with Ticker(len(models), "sample") as ticker:
            for name, model in models.items():
                ticker.advance(0, note=name)
                drawn[name] = draw(model, labels, seed=self.seed, steps=steps, eta=self.eta, order=self.order,
                                   scale=self.guidance, advance=ticker.part())
        with replacing(folder.path / "samples.npz") as partial:
            np.savez_compressed(partial, x=torch.stack(list(drawn.values()))[:, :, 0].numpy(), label=labels.numpy(),
                                models=np.array(list(drawn)), classes=np.array(first.classes))
        variant = {"steps": steps, "eta": self.eta, "order": self.order,
                   "guidance": first.guidance if self.guidance is None else self.guidance}
        _report(folder, first, drawn, labels, classifier, variant)
        side_by_side(drawn, labels, first.classes, per_class=min(per_class, ACROSS)).savefig(
            folder.media / "samples.png")
        same = "the same noise at the same place" if len(drawn) > 1 else "a class a row"
        folder.captions({"samples.png": f"Samples, {same}."})


def _report(folder: RunFolder, model: ImageModel, drawn: Mapping[str, Tensor], labels: Tensor,
                 classifier: Classifier | None, variant: Mapping[str, Any]) -> None:
    """results.json, episodes.jsonl and the table of what each model drew."""
    rows, first = [], next(iter(drawn.values()))
    for name, x in drawn.items():
        judged = judge(name, x, labels, classifier=classifier, more=_more(x, first) | readings(model, x, labels))
        rows += judged.rows(task=model.data, variant=variant)
        folder.episodes(judged.lines(task=model.data, names=model.classes))
    folder.results(rows, summary=_summary(model, drawn, rows))
    print(terminal_table(rows))


def _summary(model: ImageModel, drawn: Mapping[str, Tensor], rows: list[Row]) -> str:
    """How many images were drawn, and of how many the classifier sees the class."""
    seen = "; ".join(f"{row['method']}: {row['value']:.0%}" for row in rows
                     if row["metric"] in ("class_accuracy", "word_accuracy") and row["value"] is not None)
    judge = "Read rightly by Tesseract" if model.letters else "Seen as their class by the classifier"
    return (f"{len(next(iter(drawn.values())))} images of {model.data} drawn from {', '.join(drawn)}."
            + (f" {judge}: {seen}." if seen else ""))


def _more(x: Tensor, first: Tensor) -> dict[str, Tensor]:
    """Kilobytes as a JPEG, where it can be one, and how far images are from the first model's from the same noise."""
    values = {}
    if x.shape[2] in (1, 3):
        values["jpeg_kb"] = Jpeg(size=max(64, *x.shape[3:]), sign=1.0)(x)
    if x is not first:
        values["moved"] = (x.clamp(-1, 1) - first.clamp(-1, 1)).square().flatten(1).sum(1)
    return values
