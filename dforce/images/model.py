"""An image model ready to use: what a checkpoint of `dforce train image` (or a tuned one) means."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.config import nearest
from dforce.core.denoiser import Cond, Denoiser, Precond
from dforce.core.noise import Noise
from dforce.core.schedule import Schedule
from dforce.data.pixels import to_uint8
from dforce.data.words import NULL, checked_word, codes_of, text_cond, words_from, words_of
from dforce.guidance.wrapper import classifier_free
from dforce.images.pipeline import Pipeline, class_cond
from dforce.runs.checkpoint_defaults import no_checkpoint
from dforce.train.checkpoint import CheckpointError, find, load


class ImageModel(NamedTuple):
    """denoiser: in evaluation mode, with averaged weights. shape: (C, H, W). data: name or folder of the images.

    letters: of the longest text that a model of words is told, whose classes are those words that have a number; 0 for
    a model of classes. guidance: the scale that it is sampled at, unless another one is asked for.
    """

    denoiser: Precond
    schedule: Schedule
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    data: str
    checkpoint: Path
    letters: int = 0
    guidance: float = 1.0

    def cond(self, labels: Tensor) -> Cond:
        """The conditioning of images of these classes, [B] integers; len(classes) is the null class, of any model."""
        if not self.letters:
            return class_cond(labels)
        codes = torch.full((len(labels), self.letters), NULL, device=labels.device)
        known = labels < len(self.classes)
        if bool(known.any()):
            codes[known] = codes_of([self.classes[label] for label in labels[known].tolist()]).to(codes)
        return text_cond(codes)

    def labels(self, cond: Cond | None) -> Tensor:
        """The classes of a conditioning, the inverse of `cond` for all but the null class."""
        static = (cond or {})["static"]
        if not self.letters:
            return static["class"]
        return torch.tensor([self.classes.index(word) for word in words_from(static["text"])])

    def choice(self, chosen: Any, part: str) -> list[int]:
        """`chosen_classes`; where nothing is chosen of a model of words, this part of the listed ones."""
        return chosen_classes(words_of(part) if self.letters and chosen is None else chosen, self.classes)

    def telling(self, chosen: Any) -> "ImageModel":
        """A model of words with numbers for the `chosen` ones, too; any other model as it is."""
        if not self.letters or chosen is None:
            return self
        names = [each for each in (chosen if isinstance(chosen, (list, tuple)) else [chosen]) if isinstance(each, str)]
        words = dict.fromkeys([*self.classes, *(checked_word(name) for name in names)])
        return self._replace(classes=tuple(words))


def load_model(checkpoint: str | Path, *, raw: bool = False, trust: Iterable[str] | str | None = None,
               device: torch.device | str = "cpu") -> ImageModel:
    """The image model of a checkpoint, a run folder, or one that ships ("digits"). raw: weights without average."""
    folder = find(checkpoint)
    bundle = load(folder, raw=raw, trust=trust, device=device)
    shape, classes = bundle.layout.get("event_shape", ()), bundle.layout.get("classes")
    if len(shape) != 3 or not isinstance(classes, list):
        raise CheckpointError(f"{folder} is no image model of named classes (a token of it has shape {shape}); train "
                              "one with `dforce train image`, or take 'digits'")
    return ImageModel(bundle.denoiser, bundle.schedule, tuple(shape), tuple(classes), str(bundle.layout["dataset"]),
                      folder, (bundle.layout.get("static") or {}).get("text", 0), guidance_of(bundle.config))


def guidance_of(config: Mapping[str, Any]) -> float:
    """The guidance scale in the configuration of a checkpoint: of its tuning, else the one that it ships with, or 1."""
    scale = config.get("guidance")
    return float(config.get("recipe", {}).get("guidance", 1.0) if scale is None else scale)


def load_models(checkpoint: Any, *, raw: bool = False, trust: Any = None) -> dict[str, ImageModel]:
    """Name -> model of a checkpoint, a list, or a mapping of names; ValueError unless all draw the same classes."""
    named = checkpoint
    if checkpoint and not isinstance(checkpoint, dict):
        places = [str(place) for place in (checkpoint if isinstance(checkpoint, list) else [checkpoint])]
        named = dict(zip(_names(places), places, strict=True))
    if not named or not all(named.values()):
        raise no_checkpoint("train image")
    models = {str(name): load_model(place, raw=raw, trust=trust) for name, place in named.items()}
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


def chosen_classes(chosen: Any, classes: tuple[str, ...]) -> list[int]:
    """Numbers of the classes that are meant by names or numbers, one or a list of them; all for None."""
    if chosen is None:
        return list(range(len(classes)))
    chosen = list(chosen) if isinstance(chosen, (list, tuple)) else [chosen]
    if not chosen:
        raise ValueError("classes is empty; null draws all")
    numbers = []
    for each in chosen:
        if str(each) in classes:
            numbers.append(classes.index(str(each)))
        elif isinstance(each, int) and 0 <= each < len(classes):
            numbers.append(each)
        else:
            raise ValueError(f"no class {each!r}{nearest(str(each), classes)}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"classes names one twice: {chosen}")
    return numbers


def layout_of(shape: Iterable[int], classes: Iterable[str], data: str | Path) -> dict[str, Any]:
    """What the checkpoint of an image model says of its tokens."""
    classes = list(classes)
    return {"event_shape": [*shape], "classes": classes, "static": {"class": len(classes)}, "dataset": str(data)}


def pipeline_of(model: ImageModel) -> Pipeline:
    """The model as a pipeline; prompts are numbers of classes."""
    device = model.schedule.alpha.device
    return Pipeline(model.denoiser, model.schedule, model.shape,
                    lambda prompts: model.cond(torch.tensor(list(prompts), device=device)),
                    model.cond(torch.tensor([len(model.classes)], device=device)), lambda x: x,
                    lambda steps: model.schedule.grid(steps))


def guided_by_class(model: ImageModel, scale: float | None = 1.0) -> Denoiser:
    """The model under classifier-free guidance (Ho & Salimans 2022); at scale 1 the model itself, half the work.

    scale: None for the model's own.
    """
    scale = model.guidance if scale is None else scale
    if scale == 1:
        return model.denoiser
    return classifier_free(model.denoiser, scale, model.cond(
        torch.tensor([len(model.classes)], device=model.schedule.alpha.device)))


def draw(model: ImageModel, labels: Tensor, *, seed: int = 0, steps: int = 20, eta: float = 0.0, order: int = 2,
         scale: float | None = None, advance: Callable[[float], object] | None = None) -> Tensor:
    """Images [B, 1, C, H, W] of classes `labels` [B]; image i is a function of (seed, i, its class) and the model.

    steps: levels, evenly spaced in log-SNR; eta, order: as in `dforce.sample`; scale: of classifier-free guidance, None
    for the model's own; advance: as in `Sampler`.
    """
    pipeline = pipeline_of(model)
    sampler = pipeline.sampler(steps, guidance=model.guidance if scale is None else scale, eta=eta, order=order,
                               advance=advance)
    return sampler.tokens(len(labels), pipeline.encode(labels.tolist()), Noise(seed))


def pixels(x: Tensor) -> np.ndarray:
    """x [B, 1, C, H, W] in [-1, 1], clamped -> uint8 [B, H, W, C]."""
    if x.ndim != 5 or x.shape[1] != 1:
        raise ValueError(f"images are sequences of one token, [B, 1, C, H, W], got {[*x.shape]}")
    return to_uint8(x[:, 0].detach().float().cpu())
