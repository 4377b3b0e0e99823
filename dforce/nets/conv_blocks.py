"""What networks over frames share: a convolutional encoder and decoder that see a noise level and an action."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dforce.nets.embed import LevelFeatures, gather

Features = list[Tensor]  # of frames in several resolutions, finest first, each [N, channels, h, w]


class Layout:
    """Sizes of a network over frames. shape: (C, H, W) of a frame; channels: of each resolution, finest first.

    patch: side of the squares of pixels that the finest resolution sees as one; every further one halves the sides.
    coarse: (h, w) of the coarsest. ValueError where the frame does not divide, or a size is not positive.
    """

    def __init__(self, event_shape: Sequence[int], *, width: int, multipliers: Sequence[int], patch: int):
        if len(event_shape) != 3 or min(event_shape) < 1:
            raise ValueError(f"a network over frames takes tokens [B, T, C, H, W], the data has [B, T, "
                             f"{', '.join(map(str, event_shape))}]")
        if not multipliers or min(width, patch, *multipliers) < 1:
            raise ValueError(f"width, patch and all of one or more multipliers must be at least 1, got width={width}, "
                             f"patch={patch}, multipliers={list(multipliers)}")
        if patch & (patch - 1):
            raise ValueError(f"patch must be a power of two, for frames grow by two at a time; got {patch}")
        self.shape, self.patch = tuple(event_shape), patch
        self.channels = [width * m for m in multipliers]
        shrink = patch * 2 ** (len(multipliers) - 1)
        height, wide = self.shape[1:]
        if height % shrink or wide % shrink:
            raise ValueError(f"frames of {height}x{wide} do not divide by patch {patch} times {shrink // patch} for "
                             f"{len(multipliers)} resolutions: choose sides that are multiples of {shrink}, a smaller "
                             "patch or fewer multipliers")
        self.coarse = (height // shrink, wide // shrink)


class Told(nn.Module):
    """What every frame is told beside its pixels, embedded: label [B, T] and cond["token"] vectors -> [B T, size]."""

    def __init__(self, token: Mapping[str, int], size: int):
        super().__init__()
        self.token = dict(token)
        self.level = LevelFeatures()
        self.embed = nn.Sequential(nn.Linear(self.level.dim + sum(self.token.values()), size), nn.SiLU(),
                                   nn.Linear(size, size), nn.SiLU())

    def forward(self, label: Tensor, cond: Any) -> Tensor:
        parts = [self.level(label), *gather(cond, "token", self.token)]
        return self.embed(torch.cat([part.to(label.dtype) for part in parts], -1)).flatten(0, 1)


def frames(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x [B, T, C, H, W] as [B T, C, H, W], channels last in memory. ValueError if a frame is not `shape`."""
    if tuple(x.shape[2:]) != shape:
        raise ValueError(f"this network takes tokens [B, T, {', '.join(map(str, shape))}], got {[*x.shape]}")
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


class Block(nn.Module):
    """A residual block of two 3x3 convolutions (He et al. 2016, pre-activated); what frames are told scales and shifts
    the features between them (FiLM, Perez et al. 2018). h [N, in, h, w], told [N, size] -> [N, out, h, w]."""

    def __init__(self, into: int, out: int, told: int):
        super().__init__()
        self.norm_in, self.norm_out = _norm(into), _norm(out)
        self.conv_in, self.conv_out = (nn.Conv2d(size, out, 3, padding=1) for size in (into, out))
        self.film = nn.Linear(told, 2 * out)
        self.skip = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.film(told)[..., None, None].chunk(2, 1)
        inner = self.norm_out(self.conv_in(F.silu(self.norm_in(h))))
        return self.skip(h) + self.conv_out(F.silu(inner * (1 + scale) + shift))


class Encoder(nn.Module):
    """Frames [N, C, H, W] -> features in all resolutions; `depth` blocks in each."""

    def __init__(self, layout: Layout, *, depth: int, told: int):
        super().__init__()
        colours, self.patch = layout.shape[0], layout.patch
        self.stem = nn.Conv2d(colours * self.patch**2, layout.channels[0], 3, padding=1)
        self.blocks = nn.ModuleList(nn.ModuleList(Block(size, size, told) for _ in range(depth))
                                    for size in layout.channels)
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1)
                                  for fine, coarse in pairwise(layout.channels))

    def forward(self, x: Tensor, told: Tensor, run: Callable[..., Tensor]) -> Features:
        h, found = self.stem(F.pixel_unshuffle(x, self.patch)), []
        for down, blocks in zip([None, *self.down], self.blocks, strict=True):
            h = h if down is None else down(h)
            for block in blocks:  # type: ignore[attr-defined]
                h = run(block, h, told)
            found.append(h)
        return found


class Decoder(nn.Module):
    """Features of all resolutions, the coarsest beside `more` channels of the past, and the frames -> [N, C, H, W].

    Features grow by repetition and a convolution, never by a shuffle of channels into pixels: that leaves a checker
    pattern (Odena et al. 2016), which a rollout feeds back to itself. The last convolution also sees the frame.
    """

    def __init__(self, layout: Layout, *, more: int, depth: int, told: int):
        super().__init__()
        *finer, coarsest = layout.channels
        colours, out = layout.shape[0], max(8, layout.channels[0] // 2)
        sizes = [[coarsest + more] + [coarsest] * depth]
        sizes += [[fine + coarse] + [fine] * depth for fine, coarse in reversed([*pairwise(layout.channels)])]
        self.blocks = nn.ModuleList(nn.ModuleList(Block(into, to, told) for into, to in pairwise(size))
                                    for size in sizes)
        doublings = layout.patch.bit_length() - 1
        self.grow = nn.ModuleList(nn.Conv2d(out if i else layout.channels[0], out, 3, padding=1)
                                  for i in range(max(1, doublings)))
        self.doublings = doublings
        self.last = nn.Sequential(nn.Conv2d(out + colours, out, 3, padding=1), nn.SiLU(),
                                  nn.Conv2d(out, colours, 3, padding=1))

    def forward(self, x: Tensor, features: Features, past: Tensor, told: Tensor, run: Callable[..., Tensor]) -> Tensor:
        h = past
        for i, (found, blocks) in enumerate(zip(reversed(features), self.blocks, strict=True)):
            h = torch.cat([F.interpolate(h, scale_factor=2.0) if i else h, found], 1)
            for block in blocks:  # type: ignore[attr-defined]
                h = run(block, h, told)
        for conv in self.grow:
            h = F.silu(conv(h))
            h = F.interpolate(h, scale_factor=2.0) if self.doublings else h
        return run(self.last, torch.cat([h, x.to(h.dtype)], 1))


def runner(recompute: bool) -> Callable[..., Tensor]:
    """How blocks are called: as they are, or forgetting what is inside until the gradient asks (Chen et al. 2016)."""
    if recompute and torch.is_grad_enabled():
        return lambda block, *inputs: checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    return lambda block, *inputs: block(*inputs)
