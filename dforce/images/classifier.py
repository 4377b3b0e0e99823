"""A classifier of the images themselves: reward, judge of samples, and the features of a Frechet distance."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dforce.data.images import ImageBatches, Images
from dforce.train.atomic_folder import sealed, verified, write_tensors
from dforce.train.auxiliary import auxiliary_steps, seeded
from dforce.train.checkpoint import PRETRAINED, CheckpointError
from dforce.train.state import load_weights

CHANNELS = (32, 64, 64, 64)  # of the first resolutions, each half the one before; the rest have the last
COARSE = 4                   # pixels of a side below which a resolution is not halved
FOLDER = "classifier"        # in a run folder
EVEN = 8                     # batches are multiples of it where there are images enough: processes share them evenly
STREAM = 7919                # keeps its batches and weights apart from those of the model that has the same seed


class Classifier(nn.Module):
    """A small convolutional network. shape: (C, H, W); classes: their names, one logit each; features: numbers F."""

    def __init__(self, shape: tuple[int, int, int], classes: tuple[str, ...], *, features: int = 128):
        super().__init__()
        self.shape, self.classes, self.size = tuple(shape), tuple(classes), features
        layers: list[nn.Module] = []
        (channels, height, width), stage = self.shape, 0
        while True:
            wanted = CHANNELS[min(stage, len(CHANNELS) - 1)]
            layers += [nn.Conv2d(channels, wanted, 3, padding=1), nn.GroupNorm(8, wanted), nn.SiLU()]
            channels, stage = wanted, stage + 1
            if min(height, width) <= COARSE:
                break
            layers.append(nn.AvgPool2d(2, ceil_mode=True))
            height, width = -(-height // 2), -(-width // 2)
        layers += [nn.Flatten(), nn.Linear(channels * height * width, features), nn.SiLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(features, len(classes))

    def features(self, x: Tensor) -> Tensor:
        """[B, 1, C, H, W] -> [B, F], what the logits are a linear function of."""
        if tuple(x.shape[1:]) != (1, *self.shape):
            raise ValueError(f"the classifier takes images [B, 1, {', '.join(map(str, self.shape))}], got {[*x.shape]}")
        return self.body(x[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, C, H, W] -> logits [B, classes]."""
        return self.head(self.features(x))


class CrossEntropy(nn.Module):
    """objective(batch, generator) -> (loss, logs) of images under a little noise, so that samples are judged alike."""

    def __init__(self, classifier: Classifier, noise: float = 0.1):
        super().__init__()
        self.classifier, self.noise = classifier, noise

    def forward(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        label = batch.cond["static"]["class"]
        drawn = torch.randn(batch.x.shape, generator=generator, device=batch.x.device)
        logits = self.classifier(batch.x + self.noise * drawn)
        loss = F.cross_entropy(logits, label)
        return loss, {"accuracy": (logits.argmax(1) == label).float().mean()}


def train_classifier(images: Images, *, seed: int = 0, steps: int = 600, batch: int = 128) -> Classifier:
    """A classifier of `images` after so many steps of AdamW, averaged weights, in evaluation mode and frozen."""
    *_, classifier = classifier_steps(images, seed=seed, steps=steps, batch=batch)
    return classifier


def classifier_steps(images: Images, *, seed: int, steps: int, batch: int = 128) -> Iterator[Classifier]:
    """As `train_classifier`, yielding after each step; the last is ready. Under torchrun by all processes alike."""
    classifier = seeded(lambda: Classifier(images.shape, images.classes), seed + STREAM)
    batch = min(batch, len(images.x))
    batch -= batch % EVEN if batch > EVEN else 0
    batches = ImageBatches(images, batch=batch, seed=seed + STREAM)
    for log in auxiliary_steps(CrossEntropy(classifier), batches, lr=2e-3, steps=steps, warmup=50, ema=0.99,
                               seed=seed + STREAM):
        if log.step == log.steps:
            weights = {name.removeprefix("classifier."): value for name, value in log.training.ema.items()}
            load_weights(classifier, weights, origin="the average")
            classifier.cpu().eval().requires_grad_(False)
        yield classifier


def save_classifier(folder: str | Path, classifier: Classifier, *, about: dict[str, Any] | None = None) -> Path:
    """A sealed folder that `load_classifier` reads. about: JSON-able, such as its accuracy. CheckpointError."""
    config = {"shape": [*classifier.shape], "classes": [*classifier.classes], "features": classifier.size,
              "about": dict(about or {})}
    tensors = classifier.state_dict()
    with sealed(Path(folder), about={"kind": "classifier"}, needed=sum(t.nbytes for t in tensors.values())) as inside:
        (inside / "classifier.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        write_tensors(inside / "model.safetensors", tensors)
    return Path(folder)


def load_classifier(where: str | Path) -> Classifier:
    """In evaluation mode, frozen; of its folder, a run folder or a checkpoint in one, or "digits". CheckpointError."""
    folder = find_classifier(where)
    verified(folder)
    try:
        config = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        classifier = Classifier(tuple(config["shape"]), tuple(config["classes"]), features=config["features"])
        load_weights(classifier, load_file(folder / "model.safetensors"), origin=f"the weights in {folder}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"cannot use the classifier {folder}: {error}") from error
    return classifier.eval().requires_grad_(False)


def find_classifier(where: str | Path) -> Path:
    """The folder that `load_classifier` would read."""
    path = Path(where)
    shipped = PRETRAINED / f"{where}-{FOLDER}"
    tried = [path, path / FOLDER, path.parent.parent / FOLDER, *([shipped] if len(path.parts) == 1 else [])]
    for folder in tried:
        if (folder / "classifier.json").is_file():
            return folder
    raise CheckpointError(f"no classifier at {str(where)!r}: give a run folder of `dforce train image`, a "
                          "checkpoint in one, the classifier/ folder itself, or 'digits'")
