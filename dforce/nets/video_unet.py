"""The U-Net over clips of the Diffusion Forcing repository (branch main): its published checkpoints run as this."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dforce.nets.embed import check_sizes
from dforce.nets.transformer import angles, rotated

BUILDABLE = ("VideoUNet",)  # by name, in a configuration

GROUPS, EPSILON = 8, 1e-6  # of its group norms
State = dict[str, Tensor]


class VideoUNet(nn.Module):
    """Convolutions within frames, attention over places (linear but at the coarsest) and, at each place, over time.

    As in the original, group norms take their statistics over all frames that are shown, so a frame sees later ones of
    its chunk through them, even where attention is `masked`; frames that were absorbed do not change any more. The
    label is the timestep of Ho et al. (2020), counted from 0, and -1 for a clean frame, which the network is shown as
    one of timestep `clean_label`, times `clean_scale` and without noise (the "stabilisation" of the repository).

    event_shape: (C, H, W) of a token. width, multipliers: their products are the channels of each resolution.
    attended: numbers of the resolutions with attention, 0 the finest. heads, head_size: of every attention.
    window: tokens that it sees in all. masked: no attention to later tokens.
    State: the last tokens absorbed and their labels, {"x": [B, n, C, H, W], "label": [B, n]} with n < window.
    """

    causal = True
    recurrent = False
    keeps_chunk = True

    def __init__(self, event_shape: tuple[int, ...], *, width: int = 64, multipliers: Sequence[int] = (1, 2, 4, 8),
                 attended: Sequence[int] = (0, 1, 2, 3), heads: int = 4, head_size: int = 64, window: int = 10,
                 masked: bool = True, clean_label: int = 14, clean_scale: float = 1.0):
        super().__init__()
        check_sizes(width, multipliers)
        shrink = 2 ** (len(multipliers) - 1)
        if len(event_shape) != 3 or event_shape[1] % shrink or event_shape[2] % shrink:
            raise ValueError(f"a token is (C, H, W) with sides that {shrink} divides, got {tuple(event_shape)}")
        if min(heads, window) < 1 or head_size < 2 or head_size % 2:
            raise ValueError("heads and window must be at least 1, head_size an even number, got "
                             f"heads={heads}, window={window}, head_size={head_size}")
        self.event_shape, self.width, self.window = tuple(event_shape), width, window
        self.clean_label, self.clean_scale = clean_label, clean_scale
        over: Literal["past", "time"] = "past" if masked else "time"
        attend = partial(_Attention, heads=heads, head_size=head_size)
        sizes, coarsest = [width, *(width * m for m in multipliers)], len(multipliers) - 1

        def stage(level: int, inputs: int, outputs: int, resample: nn.Module) -> nn.ModuleList:
            mix: list[nn.Module] = [nn.Identity(), nn.Identity()]
            if level in attended:
                mix = [attend(outputs, "places" if level == coarsest else "linear"), attend(outputs, over)]
            blocks = [_Residual(inputs, outputs, 4 * width), _Residual(outputs, outputs, 4 * width)]
            return nn.ModuleList([*blocks, *mix, resample])

        self.embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.first = nn.Conv3d(event_shape[0], width, (1, 7, 7), padding=(0, 3, 3))
        self.begin = attend(width, over)
        self.down = nn.ModuleList(stage(level, i, o, _conv(o, o, 2) if level < coarsest else nn.Identity())
                                  for level, (i, o) in enumerate(pairwise(sizes)))
        middle, embedded = sizes[-1], 4 * width
        self.middle = nn.ModuleList([_Residual(middle, middle, embedded), attend(middle, "places"),
                                     attend(middle, over), _Residual(middle, middle, embedded)])
        self.up = nn.ModuleList(stage(level, 2 * o, i, _conv(i, i) if level else nn.Identity())
                                for level, (i, o) in reversed([*enumerate(pairwise(sizes))]))
        self.last = nn.ModuleList([_Residual(2 * width, width, None), nn.Conv3d(width, event_shape[0], 1)])

    def init_state(self, batch: int, cond: Any = None) -> State:
        """No token yet."""
        weight = self.first.weight
        return {"x": weight.new_zeros(batch, 0, *self.event_shape), "label": weight.new_zeros(batch, 0)}

    def absorb(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> State:
        """The state after tokens x [B, T, C, H, W] with label [B, T]."""
        x, label = torch.cat([state["x"], x], 1), torch.cat([state["label"], label], 1)
        first = max(x.shape[1] - self.window + 1, 0)
        return {"x": x[:, first:], "label": label[:, first:]}

    def forward(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> tuple[Tensor, State]:
        """x [B, T, C, H, W], label [B, T] -> out [B, T, C, H, W], and the state after x."""
        if tuple(x.shape[2:]) != self.event_shape:
            raise ValueError(f"this network takes tokens [B, T, *{[*self.event_shape]}], got {[*x.shape]}")
        known = state["x"].shape[1]
        first = max(known + x.shape[1] - self.window, 0) if known else 0  # of those known: the oldest that is seen
        shown = torch.cat([state["x"][:, first:], x], 1)
        labels = torch.cat([state["label"][:, first:], label], 1)
        clean = labels < 0
        shown = torch.where(clean[..., None, None, None], self.clean_scale * shown, shown)
        out = self._walk(shown.transpose(1, 2), labels.masked_fill(clean, self.clean_label)).transpose(1, 2)
        return out[:, -x.shape[1]:], self.absorb(x, label, state)

    def _walk(self, x: Tensor, label: Tensor) -> Tensor:
        """x [B, C, T, H, W], label [B, T] -> out [B, C, T, H, W]."""
        half = self.width // 2
        frequency = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=x.device, dtype=torch.float32))
        angle = label[..., None].float() * frequency
        embedding = self.embed(torch.cat([angle.cos(), angle.sin()], -1).to(x.dtype))
        h = begin = self.begin(self.first(x))
        skips = []
        for stage in self.down:
            *blocks, coarsen = stage.children()
            h = _through(blocks, h, embedding)
            skips.append(h)
            h = coarsen(h)
        h = _through(self.middle, h, embedding)
        for stage in self.up:
            *blocks, refine = stage.children()
            h = _through(blocks, torch.cat([h, skips.pop()], 1), embedding)
            if not isinstance(refine, nn.Identity):
                h = refine(F.interpolate(h, scale_factor=(1.0, 2.0, 2.0), mode="nearest"))
        block, head = self.last
        out: Tensor = head(block(torch.cat([h, begin], 1)))
        return out


def _through(blocks: Any, h: Tensor, embedding: Tensor) -> Tensor:
    for block in blocks:
        h = block(h, embedding) if isinstance(block, _Residual) else block(h)
    return h


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1))


class _Residual(nn.Module):
    """Two convolutions and a shortcut; the embedding of its level scales and shifts each frame between them."""

    def __init__(self, inputs: int, outputs: int, features: int | None):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, inputs, EPSILON), _conv(inputs, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, outputs, EPSILON), _conv(outputs, outputs)
        self.level = nn.Linear(features, 2 * outputs) if features else None
        self.short = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor | None = None) -> Tensor:
        between = self.norm2(self.conv1(F.silu(self.norm1(h))))
        if self.level is not None and embedding is not None:
            scale, shift = self.level(F.silu(embedding)).transpose(1, 2)[..., None, None].chunk(2, 1)
            between = between * (1 + scale) + shift
        out: Tensor = self.short(h) + self.conv2(F.silu(between))
        return out


class _Attention(nn.Module):
    """Attention over the places of each frame, or over the frames at each place ("past": the later ones masked).

    "linear": over places, at a cost that grows as their number does (Shen et al. 2021).
    """

    def __init__(self, size: int, over: Literal["places", "linear", "past", "time"], heads: int, head_size: int):
        super().__init__()
        self.norm, self.heads, self.head_size, self.over = nn.LayerNorm(size), heads, head_size, over
        self.qkv = nn.Linear(size, 3 * heads * head_size, bias=False)
        self.out = nn.Linear(heads * head_size, size)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, C, T, H, W] -> the same shape."""
        over_time = self.over in ("past", "time")
        tokens = h.permute(0, 3, 4, 2, 1) if over_time else h.permute(0, 2, 3, 4, 1)
        shape = tokens.shape
        rows = tokens.flatten(0, 2) if over_time else tokens.flatten(2, 3).flatten(0, 1)
        q, k, v = self.qkv(self.norm(rows)).unflatten(-1, (3, self.heads, self.head_size)).permute(2, 0, 3, 1, 4)
        if self.over == "linear":
            mixed = q.softmax(-1) * self.head_size ** -0.5 @ (k.softmax(-2).transpose(-1, -2) @ v)
        else:
            if over_time:
                turn = angles(torch.arange(rows.shape[1], device=h.device)[None], self.head_size)
                # neighbours are turned as pairs; with even numbers before odd ones these are the two halves
                q, k = (rotated(part.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2), turn) for part in (q, k))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.over == "past")
        out = (rows + self.out(mixed.transpose(1, 2).flatten(2))).view(shape)
        return out.permute(0, 4, 3, 1, 2) if over_time else out.permute(0, 4, 1, 2, 3)
