"""Rewards that ship: (samples [B, T, *E], prompts, metadata) -> [B]; images are [B, 1, C, H, W] in [-1, 1]."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dforce.align.rewards.network import evaluating
from dforce.align.rewards.protocol import Reward, Subject, Watched
from dforce.data.idx import idx_folder
from dforce.data.images import load_images
from dforce.data.pixels import to_uint8
from dforce.data.words import word_images

BUILDABLE = (  # by name, in a configuration
    "Jpeg", "Brightness", "Spread", "jpeg_compressibility", "jpeg_incompressibility", "file_size", "brightness",
    "spread_of_class",
)

KILOBYTE = 1000  # bytes, as in Black et al. 2023
LOOKED_AT = 1000  # real images, to know in which directions they vary


class Jpeg:
    """sign * kilobytes (1000 bytes) of each image as a JPEG file: "compressibility" at sign -1 (Black et al. 2023).

    It depends on `quality` (Pillow's 1..95) and `size`, the pixels of the longer side after bilinear enlargement (64:
    an 8x8 image is enlarged 8 times; by repeated pixels each would be a block of the JPEG, and all files equally long),
    None for images as they are. Headers count: an empty grey image of 64x64 pixels has 0.378 kB. Not differentiable.
    Values outside [-1, 1] are clamped, as for a screen.
    """

    def __init__(self, quality: int = 95, size: int | None = 64, sign: float = -1.0):
        if not 1 <= quality <= 95:
            raise ValueError(f"quality must lie in 1..95 (above, Pillow stops compressing), got {quality}")
        if size is not None and size < 1:
            raise ValueError(f"size must be at least one pixel, or None for the images' own, got {size}")
        if sign == 0:
            raise ValueError("sign must be negative (small files are good) or positive, got 0")
        self.quality, self.size, self.sign = quality, size, sign

    def __call__(self, samples: Tensor, prompts: Sequence[Any] = (), metadata: Sequence[Any] = ()) -> Tensor:
        """[B] float64 on the CPU. samples: [B, 1, C, H, W]."""
        shape = [*samples.shape]
        if samples.ndim != 5 or shape[1] != 1 or shape[2] not in (1, 3):
            raise ValueError(f"a JPEG is made of images [B, 1, C, H, W] with C = 1 or 3, got {shape}"
                             + ("; for frames of a video: per_frame(reward)" if samples.ndim == 5 else ""))
        if self.size is not None and max(shape[3:]) > self.size:
            raise ValueError(f"images of {shape[3]}x{shape[4]} pixels are larger than the stated size {self.size}: "
                             f"give size={max(shape[3:])} or more, or size=None")
        bytes_ = [self.bytes_of(image) for image in _pixels(samples, self.size)]
        return self.sign * torch.tensor(bytes_, dtype=torch.float64) / KILOBYTE

    def bytes_of(self, image: Any) -> int:
        """Of one picture: uint8 [H, W] or [H, W, 3]."""
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=self.quality)
        return file.tell()


def file_size(subject: Subject, *, sign: float) -> Watched:
    """`Jpeg` of the model's images, watched by other steps of quantisation on another grid of blocks."""
    size = max(64, subject.side)
    other = Jpeg(quality=75, size=size - size // 4 if size > subject.side else size, sign=sign)
    return Watched(Jpeg(size=size, sign=sign), other)


def jpeg_compressibility(samples: Tensor, prompts: Sequence[Any] = (), metadata: Sequence[Any] = ()) -> Tensor:
    """Minus the kilobytes of each image at JPEG quality 95, its longer side 64 pixels: see `Jpeg`."""
    return Jpeg()(samples, prompts, metadata)


def jpeg_incompressibility(samples: Tensor, prompts: Sequence[Any] = (), metadata: Sequence[Any] = ()) -> Tensor:
    """Plus the kilobytes of each image at JPEG quality 95, its longer side 64 pixels: see `Jpeg`."""
    return Jpeg(sign=1.0)(samples, prompts, metadata)


class Brightness:
    """sign * mean value of the pixels of each image, 0 for black and 1 for white, clamped; differentiable within."""

    def __init__(self, sign: float = 1.0):
        if sign == 0:
            raise ValueError("sign must be positive (bright is good) or negative, got 0")
        self.sign = sign

    def __call__(self, samples: Tensor, prompts: Sequence[Any] = (), metadata: Sequence[Any] = ()) -> Tensor:
        """[B] in the dtype of the samples. samples: [B, 1, C, H, W]."""
        return self.sign * (samples.clamp(-1, 1).flatten(1).mean(1) + 1) / 2


def brightness(subject: Subject, *, sign: float) -> Watched:
    """`Brightness`, watched by nothing."""
    return Watched(Brightness(sign))


class Spread:
    """How far each sample is from the others of its prompt in the batch: the mean squared distance of all its numbers.

    Its mean over a batch is the diversity of each prompt, so tuning on it beside another reward keeps diversity up. A
    sample's reward depends on its batch. Clamped to [-1, 1] like images on a screen.

    along: [D, k] orthonormal directions of a sample's D numbers; only distances along them count. None: all of them.
    """

    def __init__(self, along: Tensor | None = None):
        self.along = along

    def __call__(self, samples: Tensor, prompts: Sequence[Any], metadata: Sequence[Any] = ()) -> Tensor:
        """[B] float64. samples: [B, T, *E]."""
        flat, away = samples.detach().clamp(-1, 1).flatten(1).double(), torch.zeros(len(samples), dtype=torch.float64)
        flat = flat if self.along is None else flat @ self.along.to(flat)
        rows: dict[Any, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(prompt, []).append(row)
        for prompt, same in rows.items():
            if len(same) < 2:
                raise ValueError(f"spread needs two samples of every prompt in a batch, got one of {prompt!r} among "
                                 f"{len(samples)} samples: ask for more samples, or for groups")
            away[same] = torch.cdist(flat[same], flat[same]).square().sum(1).cpu() / (len(same) - 1)
        return away


def main_directions(images: Tensor, share: float) -> Tensor:
    """[D, k]: principal components of `images` [N, *E], the first that hold `share` of their variance, at least one."""
    flat = images.flatten(1).double()
    _, lengths, directions = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    held = lengths.square().cumsum(0)
    return directions[:1 + int((held < share * held[-1]).sum())].T


def spread_of_class(subject: Subject, *, share: float) -> Watched:
    """`Spread` along the directions in which real images vary most, watched by that of all pixels.

    Noise where images hardly vary, such as speckle beside the digits, so does not pay, and noise of all pixels alike
    pays k / D of what it did. share: of the variance of real images. ValueError where images have no classes.
    """
    if not subject.classes:
        raise ValueError("spread compares images of one class, and these have none")
    return Watched(Spread(main_directions(_real_images(subject), share)), Spread())


def _real_images(subject: Subject) -> Tensor:
    """[N, 1, C, H, W] of those that the model was trained on, at its size."""
    if subject.data == "words":
        return word_images("tune").x[:LOOKED_AT]
    folder, (_, height, width) = Path(subject.data), subject.shape
    cut = height == width and folder.is_dir() and not idx_folder(folder)
    images = load_images(subject.data, size=height if cut else None)
    if images.shape != subject.shape:
        raise ValueError(f"spread compares images by how those of {subject.data} vary, which have the shape "
                         f"{[*images.shape]} where this model makes {[*subject.shape]}: give the images it learnt from")
    return images.x[:LOOKED_AT]


class ClassLogProb:
    """log p(class of the prompt | sample) by a classifier (samples -> logits [B, classes]), in nats, at most 0.

    A prompt is the number of a class or, where `labels` (or the classifier's `classes`) names them, its name.
    """

    def __init__(self, classifier: Any, labels: Sequence[str] | None = None):
        self.classifier = classifier
        self.labels = tuple(labels if labels is not None else getattr(classifier, "classes", None) or ())

    def __call__(self, samples: Tensor, prompts: Sequence[Any], metadata: Sequence[Any] = ()) -> Tensor:
        """[B] in the dtype of the samples. Raises ValueError for prompts and logits that do not fit."""
        if len(prompts) != len(samples):
            raise ValueError(f"every sample has its prompt, got {len(prompts)} prompts for {len(samples)} samples")
        with evaluating(self.classifier):
            logits = self.classifier(samples)
        if logits.ndim != 2 or len(logits) != len(samples):
            raise ValueError(f"a classifier gives logits [{len(samples)}, classes], got {[*logits.shape]}")
        index = class_index(prompts, self.labels or logits.shape[1]).to(logits.device)
        return logits.log_softmax(-1).gather(1, index[:, None])[:, 0]


def class_index(prompts: Sequence[Any], classes: Sequence[str] | int) -> Tensor:
    """[B] the number of each prompt's class. classes: the names in order, or how many; names are looked up first."""
    names = {} if isinstance(classes, int) else {name: i for i, name in enumerate(classes)}
    count = classes if isinstance(classes, int) else len(classes)
    numbers = []
    for prompt in prompts:
        number = names.get(prompt) if isinstance(prompt, str) else _whole(prompt)
        if number is None or not 0 <= number < count:
            known = f"{', '.join(list(names)[:12])} or 0..{count - 1}" if names else f"0..{count - 1}"
            raise ValueError(f"the prompt {prompt!r} is no class: there are {known}")
        numbers.append(number)
    return torch.tensor(numbers, dtype=torch.long)


def per_frame(reward: Reward) -> Reward:
    """A reward of images as one of videos [B, T, C, H, W]: the mean over the frames, each with its video's prompt."""
    def over_frames(samples: Tensor, prompts: Sequence[Any], metadata: Sequence[Any] = ()) -> Tensor:
        frames = samples.shape[1]
        values = torch.as_tensor(reward(samples.flatten(0, 1)[:, None], _each(prompts, frames),
                                        _each(metadata, frames)))
        if values.shape != (samples.shape[0] * frames,):
            raise ValueError(f"a reward of images answers with one number for each of {samples.shape[0] * frames} "
                             f"frames, got {[*values.shape]}")
        return values.view(-1, frames).mean(1)

    over_frames.__qualname__ = f"per_frame({getattr(reward, '__qualname__', type(reward).__name__)})"
    return over_frames


def _each(values: Sequence[Any] | None, times: int) -> list[Any]:
    return [value for value in (() if values is None else values) for _ in range(times)]


def _whole(prompt: Any) -> int | None:
    """A prompt that is a whole number (int, numpy's, a tensor of one), else None."""
    if isinstance(prompt, bool):
        return None
    try:
        return int(prompt.__index__())
    except (AttributeError, TypeError):
        return None


def _pixels(samples: Tensor, size: int | None) -> np.ndarray:
    """uint8 [B, H, W] or [B, H, W, 3] of images [B, 1, C, H, W], the longer side enlarged to `size` pixels."""
    x = samples.detach()[:, 0].float().cpu()
    if not bool(x.isfinite().all()):
        raise ValueError("images with values that are not finite have no JPEG")
    x = x.clamp(-1, 1)
    if size is not None:
        target = [max(1, round(side * size / max(x.shape[2:]))) for side in x.shape[2:]]
        x = nn.functional.interpolate(x, size=target, mode="bilinear", align_corners=False)
    pixels = to_uint8(x)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
