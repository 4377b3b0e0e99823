"""`dforce sample image`: images of chosen classes, from several models in the same noise, side by side and judged."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from dforce.align.rewards.builtin import Jpeg
from dforce.config import nearest
from dforce.images.classifier import Classifier, load_classifier
from dforce.images.judge import judge
from dforce.images.model import ImageModel, draw, load_model
from dforce.images.pictures import side_by_side
from dforce.report.table import markdown_table
from dforce.runs.folder import RunFolder, Ticker, write_atomic
from dforce.train.checkpoint import CheckpointError

FEW = {"per_class": 2, "steps": 4}  # fast_dev_run
ACROSS = 16                         # images of a class in the picture


def run(cfg: Any, folder: RunFolder) -> None:
    """Draws from every checkpoint; samples.npz, a picture, results.json, episodes.jsonl and the table."""
    models = load_models(cfg.checkpoint, raw=cfg.raw, trust=cfg.trust)
    first = next(iter(models.values()))
    classifier = judge_of(cfg.classifier, models)
    few = FEW if cfg.fast_dev_run else {}
    per_class, steps = few.get("per_class", cfg.per_class), few.get("steps", cfg.steps)
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    labels = torch.tensor(chosen_classes(cfg.classes, first.classes)).repeat_interleave(per_class)
    drawn: dict[str, Tensor] = {}
    with Ticker(len(models), "sample") as ticker:
        for name, model in models.items():
            drawn[name] = draw(model, labels, seed=cfg.seed, steps=steps, eta=cfg.eta, order=cfg.order,
                               scale=cfg.guidance)
            ticker.advance(note=name)
    _save(folder.path / "samples.npz", drawn, labels, first.classes)
    variant = {"steps": steps, "eta": cfg.eta, "order": cfg.order, "guidance": cfg.guidance}
    rows = []
    for name, x in drawn.items():
        judged = judge(name, x, labels, classifier=classifier, more=_more(x, next(iter(drawn.values()))))
        rows += judged.rows(task=first.data, variant=variant)
        folder.episodes(judged.lines(task=first.data, classes=first.classes))
    folder.results(rows)
    side_by_side(drawn, labels, first.classes, per_class=min(per_class, ACROSS)).savefig(folder.media / "samples.png")
    same = "the same noise at the same place" if len(drawn) > 1 else "a class a row"
    write_atomic(folder.media / "captions.json", json.dumps({"samples.png": f"Samples, {same}."}) + "\n")
    print(markdown_table(rows))


def load_models(checkpoint: Any, *, raw: bool = False, trust: Any = None) -> dict[str, ImageModel]:
    """Name -> model of a checkpoint, a list of them, or a mapping of names. ValueError unless they draw the same
    classes in the same size."""
    given = OmegaConf.to_container(checkpoint) if OmegaConf.is_config(checkpoint) else checkpoint
    if given and not isinstance(given, dict):
        places = [str(place) for place in (given if isinstance(given, list) else [given])]
        given = dict(zip(_names(places), places, strict=True))
    if not given or not all(given.values()):
        raise ValueError("checkpoint is needed: 'digits', a run folder of `dforce train image`, or a list of them")
    models = {str(name): load_model(place, raw=raw, trust=trust) for name, place in given.items()}
    (name, first), *others = models.items()
    for other, model in others:
        if (model.shape, model.classes) != (first.shape, first.classes):
            raise ValueError(f"{name} draws {len(first.classes)} classes in {first.shape}, {other} draws "
                             f"{len(model.classes)} in {model.shape}: side by side they must be alike")
    return models


def _names(places: Sequence[str]) -> list[str]:
    """The last part of each path; more of it where two end alike."""
    parts = [Path(place).parts or (place,) for place in places]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"a checkpoint is given twice: {', '.join(places)}")


def chosen_classes(wanted: Any, classes: tuple[str, ...]) -> list[int]:
    """Numbers of the classes that are meant by names or numbers; all for None."""
    if wanted is None:
        return list(range(len(classes)))
    wanted = list(wanted) if OmegaConf.is_list(wanted) or isinstance(wanted, (list, tuple)) else [wanted]
    if not wanted:
        raise ValueError("classes is empty; null draws all")
    found = []
    for each in wanted:
        if str(each) in classes:
            found.append(classes.index(str(each)))
        elif isinstance(each, int) and 0 <= each < len(classes):
            found.append(each)
        else:
            raise ValueError(f"no class {each!r}{nearest(str(each), classes)}")
    if len(set(found)) < len(found):
        raise ValueError(f"classes names one twice: {wanted}")
    return found


def judge_of(wanted: str | bool | None, models: Mapping[str, ImageModel]) -> Classifier | None:
    """Who judges: the classifier at `wanted`, or (None or "auto") the one of a checkpoint or of its data; None where
    nobody shall (False) or can. ValueError for one of other images."""
    first = next(iter(models.values()))
    if wanted is False:
        return None
    if wanted not in (None, "auto"):
        found = load_classifier(str(wanted))
        if not _fits(found, first):
            raise ValueError(f"the classifier {wanted} is for {len(found.classes)} classes in {found.shape}, the "
                             f"models draw {len(first.classes)} in {first.shape}")
        return found
    for place in (*(model.checkpoint for model in models.values()), first.data):
        try:
            found = load_classifier(place)
        except CheckpointError:
            continue
        if _fits(found, first):
            return found
    print(f"note: no classifier of {first.data} is known, so classes are not judged; classifier=FOLDER names one")
    return None


def _fits(classifier: Classifier, model: ImageModel) -> bool:
    return (classifier.shape, classifier.classes) == (model.shape, model.classes)


def _more(x: Tensor, first: Tensor) -> dict[str, Tensor]:
    """Kilobytes as a JPEG, where it can be one, and how far images are from the first model's from the same noise."""
    found = {}
    if x.shape[2] in (1, 3):
        found["jpeg_kb"] = Jpeg(size=max(64, *x.shape[3:]), sign=1.0)(x)
    if x is not first:
        found["moved"] = (x.clamp(-1, 1) - first.clamp(-1, 1)).square().flatten(1).sum(1)
    return found


def _save(file: Path, drawn: Mapping[str, Tensor], labels: Tensor, classes: tuple[str, ...]) -> None:
    """samples.npz: x [models, N, C, H, W] as the models drew them, models, label [N], classes. Whole or not at all."""
    partial = file.with_name(f".{file.name}.part.npz")
    np.savez_compressed(partial, x=torch.stack(list(drawn.values()))[:, :, 0].numpy(), models=np.array(list(drawn)),
                        label=labels.numpy(), classes=np.array(classes))
    os.replace(partial, file)
