"""The network of a reward that is learnt: one number for an image, or for a trajectory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dforce.core.denoiser import Cond

Encoder = Callable[[Tensor], Tensor]  # samples [B, T, *E] -> features [B, F]
COARSE = 4    # pixels of the shorter side below which images are not halved
CHUNK = 512   # samples encoded at once


class RewardNet(nn.Module):
    """net(x [B, T, *E], cond) -> [B]: two or more convolutions and a small head, over images or over time.

    shape: (T, *E) of a sample. Tokens (C, H, W) are images, each through the same 2-D convolutions, the features
    averaged over T. Tokens (D,) are the steps of a trajectory of any length: 1-D convolutions over time, which is an
    input too, then mean and maximum. No normalisation layers, which would forget how large things are; inputs are
    standardised by the data (`observe`). classes: their number, or names; cond["static"]["class"] [B] says by which one
    is judged.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: Sequence[int], *, width: int = 32, depth: int = 2, classes: int | Sequence[str] = 0):
        super().__init__()
        self.shape, self.width, self.depth = tuple(shape), width, depth
        self.classes = classes if isinstance(classes, int) else tuple(classes)
        if len(self.shape) not in (2, 4) or min(*self.shape, width, depth) < 1:
            raise ValueError(f"a reward network takes trajectories (T, D) or images (T, C, H, W), width and depth >= 1;"
                             f" got {self.shape}, width={width}, depth={depth}")
        channels = self.shape[1]
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        if len(self.shape) == 2:
            layers, out = _over_time(channels + 1, width, depth), 2 * width
        else:
            layers, out = _over_pixels(self.shape[1:], width, depth)
        self.body = nn.Sequential(*layers)
        count = self.classes if isinstance(self.classes, int) else len(self.classes)
        self.label = nn.Embedding(count, 2 * width) if count else None
        self.size = 2 * width  # of the features
        self.project, self.head = nn.Linear(out, 2 * width), nn.Linear(2 * width, 1)

    @property
    def config(self) -> dict[str, Any]:
        """What it is built from again."""
        classes = self.classes if isinstance(self.classes, int) else [*self.classes]
        return {"shape": [*self.shape], "width": self.width, "depth": self.depth, "classes": classes}

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Takes mean and deviation of every channel (or dimension) from data [N, T, *E]."""
        inner = x.transpose(1, 2).flatten(2) if x.ndim == 3 else x.transpose(0, 2).flatten(1)[None]
        self.mean.copy_(inner.mean((0, 2)))
        std = inner.std((0, 2), correction=0)
        self.std.copy_(torch.where(std > 0, std, torch.ones_like(std)))

    def features(self, x: Tensor) -> Tensor:
        """[B, T, *E] -> [B, 2 * width], nothing of the class in it."""
        return self.project(self._body(x))

    def forward(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """[B, T, *E] -> [B]."""
        hidden = self.features(x)
        if self.label is not None:
            number = ((cond or {}).get("static") or {}).get("class")
            if number is None:
                raise ValueError("this reward judges samples by their class: give cond['static']['class'] [B]")
            hidden = hidden + self.label(number.long())
        return self.head(nn.functional.silu(hidden))[:, 0]

    def _body(self, x: Tensor) -> Tensor:
        event = self.shape[1:]
        if x.ndim != 2 + len(event) or tuple(x.shape[2:]) != event or (len(event) == 3 and x.shape[1] != self.shape[0]):
            raise ValueError(f"a reward made for samples [B, {', '.join(map(str, self.shape))}], got {[*x.shape]}")
        if len(event) == 3:
            frames = (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)
            return self.body(frames.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)
        time = torch.linspace(-1, 1, x.shape[1], device=x.device, dtype=x.dtype).expand(len(x), 1, -1)
        steps = self.body(torch.cat([((x - self.mean) / self.std).transpose(1, 2), time], 1))
        return torch.cat([steps.mean(2), steps.amax(2)], 1)


def _over_time(channels: int, width: int, depth: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv1d(channels, width, 5, padding=2), nn.SiLU()]
        channels = width
    return layers


def _over_pixels(event: Sequence[int], width: int, depth: int) -> tuple[list[nn.Module], int]:
    """`depth` convolutions at every resolution down to `COARSE` pixels; and how many numbers come out."""
    (channels, height, side), layers = event, []
    while True:
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
            channels = width
        if min(height, side) <= COARSE:
            return [*layers, nn.Flatten()], width * height * side
        layers.append(nn.AvgPool2d(2, ceil_mode=True))
        height, side = -(-height // 2), -(-side // 2)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Inside, a module is in evaluation mode; afterwards as it was. Anything else is left alone."""
    modes = {part: part.training for part in model.modules()} if isinstance(model, nn.Module) else {}
    if modes:
        model.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def encode(encoder: Any, x: Tensor) -> Tensor:
    """Features [B, F] of samples, in evaluation mode: encoder.features(x) where there is such, else encoder(x)."""
    function: Encoder = encoder.features if hasattr(encoder, "features") else encoder
    with evaluating(encoder):
        features = torch.cat([function(part) for part in x.split(CHUNK)])
    if features.ndim != 2 or len(features) != len(x):
        raise ValueError(f"an encoder gives features [{len(x)}, F], got {[*features.shape]}")
    return features


def flat(x: Tensor) -> Tensor:
    """The encoder that is none: the numbers of a sample themselves, [B, T, *E] -> [B, T * E]."""
    return x.flatten(1)
