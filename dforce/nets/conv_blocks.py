"""The convolutional encoder and decoder of networks over frames, which see a noise level and an action."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dforce.nets.embed import LevelFeatures, gather

STAY = 2.0  # initial logit by which a pixel comes from its own place in the frame before

Features = list[Tensor]  # of frames in several resolutions, finest first, each [N, channels, h, w]


class Layout:
    """Sizes of a network over frames (C, H, W); ValueError where these do not divide, or a size is not positive.

    channels: of each resolution, finest first, each half the one before. coarse: (h, w) of the last. patch: in pixels.
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
            fits = ",".join(str(max(side // shrink, 1) * shrink) for side in (height, wide))
            raise ValueError(f"frames of {height}x{wide} do not divide by patch {patch} times {shrink // patch} for "
                             f"{len(multipliers)} resolutions: choose sides that are multiples of {shrink} "
                             f"(size=[{fits}]), a smaller net.patch or fewer net.multipliers")
        self.coarse = (height // shrink, wide // shrink)


class FrameEmbedding(nn.Module):
    """Embeds `labels` noise levels [B, T] and the cond["token"] vectors of these names and sizes: [B T, size]."""

    def __init__(self, token: Mapping[str, int], size: int, labels: int = 1):
        super().__init__()
        self.token = dict(token)
        self.level = LevelFeatures()
        self.embed = nn.Sequential(nn.Linear(labels * self.level.dim + sum(self.token.values()), size), nn.SiLU(),
                                   nn.Linear(size, size), nn.SiLU())

    def forward(self, label: Tensor, cond: Any, *more: Tensor) -> Tensor:
        parts = [self.level(each) for each in (label, *more)] + gather(cond, "token", self.token)
        return self.embed(torch.cat([part.to(label.dtype) for part in parts], -1)).flatten(0, 1)


def frames(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x [B, T, C, H, W] as [B T, C, H, W], channels last in memory. ValueError if a frame is not `shape`."""
    if tuple(x.shape[2:]) != shape:
        raise ValueError(f"this network takes tokens [B, T, {', '.join(map(str, shape))}], got {[*x.shape]}")
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions (He et al. 2016, pre-activated) around FiLM by `embedding` [N, size] (Perez et al. 2018)."""

    def __init__(self, into: int, out: int, embedding: int):
        super().__init__()
        self.norm_in, self.norm_out = _norm(into), _norm(out)
        self.conv_in, self.conv_out = (nn.Conv2d(size, out, 3, padding=1) for size in (into, out))
        self.film = nn.Linear(embedding, 2 * out)
        self.skip = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[..., None, None].chunk(2, 1)
        inner = self.norm_out(self.conv_in(F.silu(self.norm_in(h))))
        return self.skip(h) + self.conv_out(F.silu(inner * (1 + scale) + shift))


class Encoder(nn.Module):
    """`together` frames side by side [N, together * C, H, W] -> features in all resolutions; `depth` blocks in each."""

    def __init__(self, layout: Layout, *, depth: int, embedding: int, together: int = 1):
        super().__init__()
        colours, self.patch = together * layout.shape[0], layout.patch
        self.stem = nn.Conv2d(colours * self.patch**2, layout.channels[0], 3, padding=1)
        self.blocks = nn.ModuleList(nn.ModuleList(ResidualBlock(size, size, embedding) for _ in range(depth))
                                    for size in layout.channels)
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1)
                                  for fine, coarse in pairwise(layout.channels))

    def forward(self, x: Tensor, embedding: Tensor, run: Callable[..., Tensor]) -> Features:
        h, features = self.stem(F.pixel_unshuffle(x, self.patch)), []
        for down, blocks in zip([None, *self.down], self.blocks, strict=True):
            h = h if down is None else down(h)
            for block in blocks:  # type: ignore[attr-defined]
                h = run(block, h, embedding)
            features.append(h)
        return features


class Last(nn.Module):
    """The output pixels: the sum of new ones, the noisy frame, and the frame before, moved.

    The embedding weighs the latter two, colour by colour: at low noise the output is the noisy frame, at high noise the
    frame before, every pixel a weighted mean of the reach x reach around its place (dynamic neural advection, Finn et
    al. 2016). It also scales and shifts the features, since one gain does not suit all levels.
    h: [N, into, H, W], features. seen: [N, frames * C, H, W], the noisy frame and, with reach > 0, the one before it.
    """

    def __init__(self, into: int, inner: int, colours: int, embedding: int, *, reach: int = 0):
        super().__init__()
        self.colours, self.reach, frames = colours, reach, 2 if reach else 1
        self.conv_in = nn.Conv2d(into + frames * colours, inner, 3, padding=1)
        self.conv_out = nn.Conv2d(inner, colours, 3, padding=1)
        self.film, self.share = nn.Linear(embedding, 2 * inner), nn.Linear(embedding, frames * colours)
        if reach:
            self.from_features = nn.Conv2d(inner, reach**2, 3, padding=1)
            self.from_told = nn.Linear(embedding, reach**2)
        with torch.no_grad():
            self.conv_out.weight.mul_(0.1)
            for layer in (self.share, *([self.from_told] if reach else [])):
                layer.weight.mul_(0.1)
                layer.bias.zero_()
            if reach:
                self.from_told.bias[reach**2 // 2] = STAY

    def forward(self, h: Tensor, seen: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[..., None, None].chunk(2, 1)
        h = F.silu(self.conv_in(torch.cat([h, seen], 1)) * (1 + scale) + shift)
        out, share = self.conv_out(h), self.share(embedding)[..., None, None]
        if self.reach:
            weight = (self.from_features(h) + self.from_told(embedding)[..., None, None]).softmax(1)
            seen = torch.cat([seen[:, :self.colours], self._moved(seen[:, self.colours:], weight)], 1)
        return out + (share * seen).unflatten(1, (-1, self.colours)).sum(1)

    def _moved(self, before: Tensor, weight: Tensor) -> Tensor:
        """Frames [N, C, H, W] moved by weights [N, reach**2, H, W]; the border is repeated outwards."""
        side = self.reach // 2
        around = F.pad(before.contiguous(), (side,) * 4, mode="replicate")  # colours apart: a weight is for all
        weight, moved = weight.contiguous(), torch.zeros_like(before, memory_format=torch.contiguous_format)
        height, wide = before.shape[2:]
        for k in range(self.reach**2):  # views one by one: all of them unfolded would be reach**2 frames a frame
            down, right = divmod(k, self.reach)
            moved = torch.addcmul(moved, around[..., down:down + height, right:right + wide], weight[:, k:k + 1])
        return moved


class Decoder(nn.Module):
    """Frames [N, C, H, W] from features of all resolutions, `more` channels of the past, and the frames seen.

    Features grow by repetition and a convolution: a shuffle of channels into pixels leaves a checker pattern (Odena et
    al. 2016), which a rollout feeds back to itself. seen, reach: see `Last`.
    """

    def __init__(self, layout: Layout, *, more: int, depth: int, embedding: int, reach: int = 0):
        super().__init__()
        *finer, coarsest = layout.channels
        colours, out = layout.shape[0], max(8, layout.channels[0] // 2)
        sizes = [[coarsest + more] + [coarsest] * depth]
        sizes += [[fine + coarse] + [fine] * depth for fine, coarse in reversed([*pairwise(layout.channels)])]
        self.blocks = nn.ModuleList(nn.ModuleList(ResidualBlock(into, to, embedding) for into, to in pairwise(size))
                                    for size in sizes)
        doublings = layout.patch.bit_length() - 1
        self.grow = nn.ModuleList(nn.Conv2d(out if i else layout.channels[0], out, 3, padding=1)
                                  for i in range(max(1, doublings)))
        self.doublings = doublings
        self.last = Last(out, out, colours, embedding, reach=reach)

    def forward(self, seen: Tensor, features: Features, past: Tensor, embedding: Tensor,
                run: Callable[..., Tensor]) -> Tensor:
        h = past
        for i, (fine, blocks) in enumerate(zip(reversed(features), self.blocks, strict=True)):
            h = torch.cat([F.interpolate(h, scale_factor=2.0) if i else h, fine], 1)
            for block in blocks:  # type: ignore[attr-defined]
                h = run(block, h, embedding)
        for conv in self.grow:
            h = F.silu(conv(h))
            h = F.interpolate(h, scale_factor=2.0) if self.doublings else h
        return run(self.last, h, seen.to(h.dtype), embedding)


def runner(recompute: bool) -> Callable[..., Tensor]:
    """The function that calls blocks: as they are, or with activation checkpointing (Chen et al. 2016)."""
    if recompute and torch.is_grad_enabled():
        return lambda block, *inputs: checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    return lambda block, *inputs: block(*inputs)
