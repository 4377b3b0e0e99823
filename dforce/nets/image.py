"""Networks of one image: a residual MLP for tiny ones, a small U-Net of 2-D convolutions for larger ones."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dforce.nets.embed import GROUPS, LevelFeatures, check_sizes

BUILDABLE = ("ImageMLP", "ImageUNet")  # by name, in a configuration

State = dict[str, Tensor]


class ImageNet(nn.Module):
    """The base of networks of one token, an image [B, 1, C, H, W]: the embedding of its level and class.

    event_shape: (C, H, W). static: {"class": n} for a network with classes 0..n-1 and the null class n of
    classifier-free guidance, None without conditioning; cond["static"]["class"]: [B] integers, None is the null class.
    State: {"class": [B]}, or an empty one. Not causal: an image has no past to absorb and no future to roll out.
    """

    causal = False
    recurrent = False

    def __init__(self, event_shape: tuple[int, ...], static: Mapping[str, int] | None, features: int):
        super().__init__()
        self.event_shape, static = tuple(event_shape), dict(static or {})
        if len(self.event_shape) != 3:
            raise ValueError(f"an image is (C, H, W), got event_shape={self.event_shape}")
        if set(static) - {"class"}:
            raise ValueError(f"{type(self).__name__} is told a 'class' and nothing else, got static={static}")
        self.classes = static.get("class", 0)
        self.level = LevelFeatures()
        self.embed = nn.Sequential(nn.Linear(self.level.dim, features), nn.SiLU(), nn.Linear(features, features))
        self.name = nn.Embedding(self.classes + 1, features) if self.classes else None

    def init_state(self, batch: int, cond: Any = None) -> State:
        """The classes of `batch` images. Raises ValueError for wrong ones and for other conditioning than a class."""
        static = dict((cond or {}).get("static") or {})
        if unknown := sorted(set(static) - ({"class"} if self.classes else set())):
            raise ValueError(f"built for cond['static'] of {['class'] if self.classes else 'none'}, got also {unknown}")
        if self.name is None:
            return {"none": next(self.embed.parameters()).new_zeros(batch, 0)}
        label = static.get("class")
        if label is None:
            return {"class": torch.full((batch,), self.classes, device=self.name.weight.device)}
        if label.shape != (batch,) or label.is_floating_point() or label.dtype == torch.bool:
            raise ValueError(f"cond['static']['class'] must be integers [{batch}], got {label.dtype} {[*label.shape]}")
        if label.numel() and not 0 <= int(label.min()) <= int(label.max()) <= self.classes:
            raise ValueError(f"classes must lie in 0..{self.classes - 1}, or be {self.classes}, the null class; got "
                             f"{int(label.min())}..{int(label.max())}")
        return {"class": label.long()}

    def embedding(self, x: Tensor, label: Tensor, state: State) -> Tensor:
        """Features [B, F] of level and class; x checked to be one token of the right shape."""
        if tuple(x.shape[1:]) != (1, *self.event_shape):
            raise ValueError(f"this network takes one token, an image [B, 1, {', '.join(map(str, self.event_shape))}], "
                             f"got {[*x.shape]}")
        features = self.embed(self.level(label[:, 0]))
        return features if self.name is None else features + self.name(state["class"])


class ImageMLP(ImageNet):
    """A residual MLP over all pixels at once: for images of a few hundred numbers, on which it is quick on any CPU.

    A block is h + W2 (silu(W1 norm(h)) scaled and shifted by the features of level and class), as in FiLM (Perez et al.
    2018). `width` of h and of the features, `depth` blocks of `hidden` units.
    """

    def __init__(self, event_shape: tuple[int, ...], *, static: Mapping[str, int] | None = None, width: int = 256,
                 depth: int = 4, hidden: int = 256):
        super().__init__(event_shape, static, width)
        if min(width, depth, hidden) < 1:
            raise ValueError(f"width, depth and hidden must be positive, got {width}, {depth}, {hidden}")
        dim = int(torch.Size(self.event_shape).numel())
        self.first = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_Block(width, hidden) for _ in range(depth))
        self.last = nn.Sequential(nn.LayerNorm(width), _zero(nn.Linear(width, dim)))

    def forward(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> tuple[Tensor, State]:
        """x [B, 1, C, H, W], label [B, 1] -> out [B, 1, C, H, W]; the state comes back as it is."""
        embedding = F.silu(self.embedding(x, label, state))
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.last(h).view(x.shape), state


class ImageUNet(ImageNet):
    """A U-Net of 2-D convolutions (the network of Ho et al. 2020 made small, without attention).

    Each resolution has two residual blocks, whose second halves are scaled and shifted by the features of level and
    class (Dhariwal & Nichol 2021). `width` (a multiple of 8): channels times `multipliers`, each half the one before.
    """

    def __init__(self, event_shape: tuple[int, ...], *, static: Mapping[str, int] | None = None, width: int = 32,
                 multipliers: Sequence[int] = (1, 2, 2)):
        super().__init__(event_shape, static, 4 * width)
        check_sizes(width, multipliers)
        channels, height, across = self.event_shape
        shrink = 2 ** (len(multipliers) - 1)
        if height % shrink or across % shrink:
            raise ValueError(f"images of {height}x{across} cannot be halved {len(multipliers) - 1} times: give fewer "
                             f"multipliers, or resize them to multiples of {shrink}")
        sizes = [width, *(width * m for m in multipliers)]
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(Residual(i, o, 4 * width) for i, o in pairwise(sizes))
        self.coarsen = nn.ModuleList(nn.Conv2d(size, size, 3, stride=2, padding=1) for size in sizes[1:-1])
        self.middle = Residual(sizes[-1], sizes[-1], 4 * width)
        coarse = list(zip(sizes[1:], [width, *sizes[1:-1]], strict=True))[::-1]  # from the coarsest resolution up
        self.up = nn.ModuleList(Residual(2 * i, o, 4 * width) for i, o in coarse)
        last = _zero(nn.Conv2d(width, channels, 3, padding=1))
        self.last = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), last)

    def forward(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> tuple[Tensor, State]:
        """x [B, 1, C, H, W], label [B, 1] -> out [B, 1, C, H, W]; the state comes back as it is."""
        embedding = F.silu(self.embedding(x, label, state))
        h, skips = self.first(x[:, 0]), []
        for i, block in enumerate(self.down):
            h = block(h, embedding)
            skips.append(h)
            if i < len(self.coarsen):
                h = self.coarsen[i](h)
        h = self.middle(h, embedding)
        for i, block in enumerate(self.up):
            h = block(torch.cat([h if not i else F.interpolate(h, scale_factor=2.0), skips.pop()], 1), embedding)
        return self.last(h)[:, None], state


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.film = nn.Linear(width, 2 * hidden)
        _zero(self.second)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding).chunk(2, -1)
        return h + self.second(F.silu(self.first(self.norm(h)) * (1 + scale) + shift))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, features: int):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(GROUPS, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.film = nn.Linear(features, 2 * outputs)
        self.norm, self.second = nn.GroupNorm(GROUPS, outputs), _zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.short = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[..., None, None].chunk(2, 1)
        return self.short(h) + self.second(F.silu(self.norm(self.first(h)) * (1 + scale) + shift))


def _zero(layer: nn.Module) -> nn.Module:
    """`layer` with all parameters 0, the end of a residual branch (Goyal et al. 2017): deep nets then learn at once."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
