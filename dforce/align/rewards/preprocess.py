"""Images and prompts as published rewards want them: what their own processors do, with gradients."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from dforce.data.pixels import to_uint8

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ROUNDING = 1e-4  # of float32, in 255ths
BICUBIC = 3  # of Pillow, `resample` in preprocessor_config.json


class Preprocess(NamedTuple):
    """Images resized to `side` pixels, in RGB and standardised, as Pillow and CLIP's image processor do it.

    fit: "crop", the shorter side is `side` long and the middle is kept; "pad", the longer side is, and black surrounds
    the rest (open_clip's resize_longest_max); "squash", both are.
    """

    side: int = 224
    fit: Literal["crop", "pad", "squash"] = "crop"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __call__(self, samples: Tensor) -> Tensor:
        """[B, 1, C, H, W] in [-1, 1], clamped, C = 1 or 3 -> [B, 3, side, side].

        Values are rounded to 8 bits where an image file would be; gradients pass through the rounding.
        """
        x = (rgb(samples).clamp(-1, 1) + 1) * 127.5
        x = _replaced(x, x.round()) / 255
        height, width = x.shape[2:]
        reference = max(height, width) if self.fit == "pad" else min(height, width)
        sizes = [self.side if self.fit == "squash" or one == reference else self._other(one, reference)
                 for one in (height, width)]
        for size in ((height, sizes[1]), tuple(sizes)):  # across, then down, as Pillow
            if size != tuple(x.shape[2:]):
                x = F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)
                x = _replaced(x, (x.clamp(0, 1) * 255 + 0.5 + ROUNDING).floor() / 255)  # halves up, as Pillow does
        room = [self.side - size for size in sizes]  # negative: cut off
        top, left = (one // 2 if one >= 0 else -(-one // 2) for one in room)
        x = F.pad(x, (left, room[1] - left, top, room[0] - top))
        return (x - x.new_tensor(self.mean).view(-1, 1, 1)) / x.new_tensor(self.std).view(-1, 1, 1)

    def _other(self, size: int, reference: int) -> int:
        return max(1, round(size * self.side / reference) if self.fit == "pad" else self.side * size // reference)


def preprocess_of(folder: Path, side: int) -> Preprocess:
    """What preprocessor_config.json in a folder says, CLIP's usual numbers where there is none. side: of the network.

    ValueError for a processor that does something else.
    """
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return Preprocess(side)
    config = json.loads(file.read_text(encoding="utf-8"))
    size, crop = config.get("size", side), config.get("crop_size", side)
    squash = isinstance(size, Mapping) and "shortest_edge" not in size
    shorter = set(size.values()) if isinstance(size, Mapping) else {size}
    kept = set(crop.values()) if isinstance(crop, Mapping) else {crop}
    cuts = config.get("do_center_crop", not squash)
    whole = [config.get(key, True) for key in ("do_resize", "do_rescale", "do_normalize")]
    if (shorter != {side} or cuts and kept != {side} or cuts == squash or config.get("resample", BICUBIC) != BICUBIC
            or not all(whole)):
        raise ValueError(f"{file.name} resizes to {size}, crops to {crop if cuts else 'nothing'}, resample "
                         f"{config.get('resample')}: only bicubic images of the network's {side} pixels are reproduced")
    return Preprocess(side, "squash" if squash else "crop", tuple(config.get("image_mean", CLIP_MEAN)),
                      tuple(config.get("image_std", CLIP_STD)))


def rgb(samples: Tensor) -> Tensor:
    """[B, 1, C, H, W], C = 1 or 3 -> [B, 3, H, W] float32. ValueError for anything else."""
    if samples.ndim != 5 or samples.shape[1] != 1 or samples.shape[2] not in (1, 3):
        raise ValueError(f"this reward judges images [B, 1, C, H, W] with C = 1 or 3, got {[*samples.shape]}")
    return samples[:, 0].float().expand(-1, 3, -1, -1)


def pictures_of(samples: Tensor) -> list[np.ndarray]:
    """The images [B, 1, C, H, W] in [-1, 1] as uint8 [H, W, 3] each, clamped."""
    return list(to_uint8(rgb(samples.detach())))


class Texts(NamedTuple):
    """Prompts as text: words as they are, the number of a class as its name, put into `template` at {}."""

    classes: tuple[str, ...] = ()
    template: str = "{}"

    def __call__(self, prompts: Sequence[Any], count: int) -> list[str]:
        """One text for each of `count` samples. ValueError, which names the first prompt that is none."""
        if len(prompts) != count:
            raise ValueError(f"every sample has its prompt, got {len(prompts)} prompts for {count} samples")
        return [self.template.replace("{}", self._word(prompt)) for prompt in prompts]

    def _word(self, prompt: Any) -> str:
        if isinstance(prompt, str):
            return prompt
        number = None if isinstance(prompt, bool) or not hasattr(prompt, "__index__") else int(prompt.__index__())
        if number is None or not 0 <= number < len(self.classes):
            raise ValueError(f"the prompt {prompt!r} is no text and no number of a class; classes: "
                             f"{', '.join(self.classes[:12]) or 'none'}")
        return self.classes[number]


def _replaced(x: Tensor, value: Tensor) -> Tensor:
    """The value, with the gradient of x."""
    return value.detach() + x - x.detach()
