"""U-Nets of 1-D convolutions over time: their common part, and Diffuser's network, which denoises whole plans."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dforce.nets.embed import GROUPS, LevelFeatures, check_sizes, flat_tokens, gather, static_vector

BUILDABLE = ("TemporalUNet",)  # by name, in a configuration

State = dict[str, Tensor]


class ConvUNet1d(nn.Module):
    """Residual blocks on the way down and up, two a resolution, two in the middle, skips between (Janner et al. 2022).

    A class that derives from it calls `add_layers` once, in the place where its weights are to be drawn, then `walk`.
    """

    def add_layers(self, sizes: Sequence[int], outputs: int, features: int, *, scale: bool = False) -> None:
        """sizes: channels of the input, then of each resolution. features, scale: of what modulates every block."""
        self.down = nn.ModuleList(_Pair(i, o, features, scale) for i, o in pairwise(sizes))
        self.coarsen = nn.ModuleList(nn.Conv1d(size, size, 3, stride=2, padding=1) for size in sizes[1:-1])
        self.middle = _Pair(sizes[-1], sizes[-1], features, scale)
        coarse = list(zip(sizes[2:], sizes[1:], strict=False))[::-1]  # from the coarsest resolution to the finest
        self.up = nn.ModuleList(_Pair(2 * i, o, features, scale) for i, o in coarse)
        self.refine = nn.ModuleList(nn.ConvTranspose1d(o, o, 4, stride=2, padding=1) for _, o in coarse)
        self.last = nn.Sequential(_ConvBlock(sizes[1], sizes[1]), nn.Conv1d(sizes[1], outputs, 1))

    def walk(self, h: Tensor, features: Tensor, mix: Callable[[int, Tensor], Tensor] = lambda place, h: h) -> Tensor:
        """h [N, inputs, L], features [N, F, L], or [N, F, 1] for all positions -> [N, outputs, L].

        mix: (number of the pair of blocks, what they put out) -> what takes its place.
        """
        scales, skips = [features], []
        for i, pair in enumerate(self.down):
            h = mix(i, pair(h, scales[-1]))
            if i < len(self.coarsen):
                skips.append(h)
                h = self.coarsen[i](h)
                scales.append(F.avg_pool1d(scales[-1], 2) if features.shape[-1] > 1 else features)
        skips.append(h)
        h = mix(len(self.down), self.middle(h, scales[-1]))
        for i, (pair, refine) in enumerate(zip(self.up, self.refine, strict=True), len(self.down) + 1):
            h = refine(mix(i, pair(torch.cat([h, skips.pop()], 1), scales.pop())))
        out: Tensor = self.last(h)
        return out


class TemporalUNet(ConvUNet1d):
    """The temporal U-Net of Janner et al. (2022), appendix C, with a noise level for every token.

    Each position gets its level's embedding, averaged over the tokens that a coarser position stands for; with equal
    levels this is Diffuser's network. Every token sees all others within the receptive field, so it is not causal. A
    sequence whose length 2^(resolutions - 1) does not divide is padded at its end, and cut again.

    event_shape: *E of one token. static: names and sizes of vectors that are added to every position's embedding;
    token: of those beside the tokens. width, multipliers: their products are the channels of each resolution; width is
    a multiple of 8. goal: how many numbers at the end of the last token (Diffuser's goal, shown clean) are embedded and
    added to every position, as static vectors are; 0 is Diffuser's network, whose convolutions must carry them, which
    takes far longer. State: {"start": [B, width]}, the embedded static conditioning.
    """

    causal = False
    recurrent = False

    def __init__(self, event_shape: tuple[int, ...], *, static: Mapping[str, int] | None = None,
                 token: Mapping[str, int] | None = None, width: int = 32, multipliers: Sequence[int] = (1, 4, 8),
                 goal: int = 0):
        super().__init__()
        check_sizes(width, multipliers)
        self.event_shape = tuple(event_shape)
        self.static, self.token = dict(static or {}), dict(token or {})
        self.width, self.shrink = width, 2 ** (len(multipliers) - 1)
        dim = int(torch.Size(self.event_shape).numel())
        sizes = [dim + sum(self.token.values()), *(width * m for m in multipliers)]
        if not 0 <= goal <= dim:
            raise ValueError(f"goal={goal}: a token has {dim} numbers, of which 0 to {dim} can be its goal")
        self.goal_size = goal
        self.level = LevelFeatures()
        self.embed = level_embedding(self.level.dim, width)
        self.start = level_embedding(sum(self.static.values()), width) if self.static else None
        self.goal = level_embedding(goal, width) if goal else None
        self.add_layers(sizes, dim, width)

    def init_state(self, batch: int, cond: Any = None) -> State:
        """The embedded `static` conditioning, zeros without one. Raises ValueError if some is missing."""
        if self.start is None:
            return {"start": next(self.embed.parameters()).new_zeros(batch, self.width)}
        return {"start": self.start(static_vector(cond, self.static, batch))}

    def forward(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> tuple[Tensor, State]:
        """x [B, T, *E], label [B, T] -> out [B, T, *E]; the state comes back as it is."""
        time = x.shape[1]
        missing = -time % self.shrink
        flat, embedding = flat_tokens(x, self.event_shape), state["start"]
        if self.goal is not None:
            embedding = embedding + self.goal(flat[:, -1, -self.goal_size:])
        features = (self.embed(self.level(label)) + embedding[:, None]).transpose(1, 2)
        features = F.pad(features, (0, missing), mode="replicate")
        h = torch.cat([flat, *gather(cond, "token", self.token)], -1).transpose(1, 2)
        h = F.pad(h, (0, missing))
        return self.walk(h, features)[:, :, :time].transpose(1, 2).reshape(x.shape), state


def level_embedding(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 4 * width), nn.Mish(), nn.Linear(4 * width, width))


class _ConvBlock(nn.Sequential):
    def __init__(self, inputs: int, outputs: int):
        super().__init__(nn.Conv1d(inputs, outputs, 5, padding=2), nn.GroupNorm(GROUPS, outputs), nn.Mish())


class _Residual(nn.Module):
    """Two convolutions and a shortcut; between them a linear map of the features is added, or with `scale` two of them
    multiply and are added (FiLM, Perez et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, features: int, scale: bool):
        super().__init__()
        self.first, self.second, self.scale = _ConvBlock(inputs, outputs), _ConvBlock(outputs, outputs), scale
        self.level = nn.Sequential(nn.Mish(), nn.Conv1d(features, outputs * (1 + scale), 1))
        self.short = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        between, shift = self.first(h), self.level(features)
        if self.scale:
            factor, shift = shift.chunk(2, 1)
            between = between * factor
        return self.second(between + shift) + self.short(h)


class _Pair(nn.Module):
    """One resolution: two residual blocks. h: [B, inputs, L], features: [B, F, L] -> [B, outputs, L]."""

    def __init__(self, inputs: int, outputs: int, features: int, scale: bool):
        super().__init__()
        self.first = _Residual(inputs, outputs, features, scale)
        self.second = _Residual(outputs, outputs, features, scale)

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(h, features), features)
        return out
