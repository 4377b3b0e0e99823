"""`dforce train image`: images of named classes to a model of them, and a classifier that judges its samples."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from dforce.config import build
from dforce.data.images import ImageBatches, Images, load_images
from dforce.images.classifier import FOLDER as CLASSIFIER
from dforce.images.classifier import Classifier, load_classifier, save_classifier, training
from dforce.images.judge import judge
from dforce.images.metrics import accuracy
from dforce.images.model import draw, layout_of, load_model
from dforce.images.pictures import side_by_side
from dforce.nets.image import ImageMLP
from dforce.report.table import markdown_table
from dforce.runs.folder import RunFolder, Ticker, write_atomic
from dforce.runs.training_run import FEW, Kind, Prepared, carry_out, has_checkpoint, run_kind
from dforce.train.checkpoint import build_denoiser, load, load_state
from dforce.train.fit import TrainingState, stop_requested

FOLDER = False   # as in `dforce train`
MANY = 1024      # numbers of an image from which an MLP is a poor choice
SHOWN = 8        # images of a class in the picture
FEW_SAMPLES = 2  # of each class, under fast_dev_run
STEPS = 20       # of sampling


def run(cfg: Any, _: None = None) -> None:
    """Trains as cfg says; checkpoints, classifier, metrics and the page go into the run folder."""
    run_kind(KIND, cfg)


def prepare(cfg: Any) -> Prepared:
    """Data, model and training loop of cfg, or ValueError. data: (training images, held-out images)."""
    images, held_out = (load_images(cfg.data, split=split, size=cfg.size) for split in ("train", "test"))
    layout = {**layout_of(images.shape, images.classes, cfg.data), "digest": _digest(images)}
    torch.manual_seed(cfg.seed)
    config = OmegaConf.to_container(cfg, resolve=True)
    denoiser = build_denoiser(config, layout, trust=cfg.trust)
    if isinstance(denoiser.net, ImageMLP) and images.x[0].numel() >= MANY:
        print(f"note: an image has {images.x[0].numel()} numbers, many for an MLP: net=image_unet learns them better")
    objective = build(cfg.objective, trust=cfg.trust)(denoiser, denoiser.schedule)
    state = _state(cfg, layout)
    options = FEW if cfg.fast_dev_run else {}
    batches = ImageBatches(images, batch=min(cfg.batch, len(images.x)), seed=cfg.seed, drop=cfg.drop)
    known = ImageBatches(held_out, batch=min(cfg.batch, len(held_out.x)), seed=cfg.seed)
    logs = build(cfg.fit, trust=cfg.trust)(objective, batches, seed=cfg.seed, resume=state, validate=known, **options)
    return Prepared(logs, {"config": config, "layout": layout}, state.step if state else 0,
                    options.get("steps", cfg.fit.steps), (images, held_out))


def _digest(images: Images) -> str:
    """Of all pixels and labels: a run goes on with the images that it began with."""
    digest = hashlib.sha256(images.x.numpy().tobytes())
    digest.update(images.label.numpy().tobytes())
    return digest.hexdigest()[:16]


def _state(cfg: Any, layout: dict[str, Any]) -> TrainingState | None:
    """Where cfg.resume stopped; None for a new run, and for one that was stopped before its first checkpoint."""
    if not cfg.resume or not has_checkpoint(Path(cfg.resume)):
        return None
    before = load(cfg.resume, trust=cfg.trust).layout
    if before.get("digest") != layout["digest"]:
        raise ValueError(f"the images of {cfg.data} are not those that {cfg.resume} was trained on: bring the old ones "
                         "back, or start a new run")
    return load_state(cfg.resume)


def work(prepared: Prepared, cfg: Any, folder: RunFolder) -> None:
    """Trains classifier and model; draws samples, judges them beside held-out images."""
    images, held_out = prepared.data
    classifier = _classifier(cfg, folder, images, held_out)
    newest = carry_out(prepared, cfg, folder)
    if folder.writes and cfg.samples:
        _judge(cfg, folder, newest, held_out, classifier)


def _classifier(cfg: Any, folder: RunFolder, images: Images, held_out: Images) -> Classifier | None:
    """The classifier of the run folder, trained first if there is none yet: it is quick, and wanted while training."""
    place = folder.path / CLASSIFIER
    if not cfg.classifier:
        return None
    if (place / "classifier.json").is_file():
        return load_classifier(place)
    steps = FEW["steps"] if cfg.fast_dev_run else cfg.classifier
    with Ticker(steps, "classifier") as ticker, stop_requested() as stop:
        for classifier in training(images, seed=cfg.seed, steps=steps):  # noqa: B007  # the last one is ready
            ticker.advance()
            if stop():
                raise KeyboardInterrupt(f"stopped before the first step of the model; go on with resume={folder.path}")
    if not folder.writes:  # all processes train it, one keeps it
        return None
    right = float(accuracy(classifier, held_out.x, held_out.label).float().mean())
    save_classifier(place, classifier, about={"data": str(cfg.data), "steps": steps, "seed": cfg.seed,
                                              "test_accuracy": round(right, 4)})
    print(f"classifier: {right:.1%} of {len(held_out.x)} held-out images")
    return classifier


def _judge(cfg: Any, folder: RunFolder, checkpoint: Path, held_out: Images, classifier: Classifier | None) -> None:
    """results.json, episodes.jsonl and media/samples.png: samples beside as many held-out images of their classes."""
    model, task = load_model(checkpoint, trust=cfg.trust), str(cfg.data)
    count = FEW_SAMPLES * len(model.classes) if cfg.fast_dev_run else cfg.samples
    count = min(count, len(held_out.x))
    some = torch.arange(count) * len(held_out.x) // count  # spread over all, for folders are in the order of classes
    real = held_out._replace(x=held_out.x[some], label=held_out.label[some])
    x = draw(model, real.label, seed=cfg.seed, steps=STEPS)
    sets = [judge("data", real.x, real.label, classifier=classifier),
            judge("samples", x, real.label, classifier=classifier)]
    rows = []
    for judged, variant in zip(sets, ({}, {"steps": STEPS}), strict=True):
        rows += judged.rows(task=task, variant=variant)
        if classifier is not None and len(real.x) >= 4:  # half of the real images is what the others are compared with
            part = judged.some(slice(1, None, 2))
            rows.append(part.frechet_row(real.x[::2], classifier, task=task, variant=variant))
    folder.results(rows)
    (folder.path / "episodes.jsonl").unlink(missing_ok=True)  # of the run before it was resumed
    folder.episodes(line for judged in sets for line in judged.lines(task=task, classes=model.classes))
    side_by_side({"held-out images": real.x, "samples": x}, real.label, model.classes, per_class=SHOWN).savefig(
        folder.media / "samples.png")
    write_atomic(folder.media / "captions.json", json.dumps(
        {"samples.png": "Held-out images, and samples of the same classes."}) + "\n")
    print(markdown_table(rows))


KIND = Kind("train/image", frozenset({"fit", "data", "net", "drop", "classifier"}), prepare, work,
            lambda folder: f"open {folder / 'index.html'}; draw more with: dforce sample image checkpoint={folder}")
