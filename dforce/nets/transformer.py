"""A transformer over vector tokens: causal, with a cache of its past as its state, or without the mask."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dforce.nets.embed import LevelFeatures, flat_tokens, gather, static_vector

BUILDABLE = ("TransformerNet",)  # by name, in a configuration

State = dict[str, Tensor]

ROTARY_BASE = 10_000.0         # Su et al. (2021), section 3.2.2
AGES = (1.0, 4.0, 16.0)        # tokens; decay times of the features of the time since a sequence began


class TransformerNet(nn.Module):
    """A pre-norm transformer (SwiGLU, RMS norm, rotary positions) with the interface of `RecurrentNet`.

    out [B, T, *E] at token t sees x_t at its own level, and the `context` tokens before it at the levels at which they
    were shown. A token sees no further in any layer, whether the past is in the sequence or in the state, so both
    agree, and a run may be endless: the oldest token slides out. The conditioning `static` (such as {"start": 4}) is
    added to every token. Fading features encode the time since the sequence began, so that a long rollout shows nothing
    unseen.

    event_shape: *E of one token. static, token: names and sizes of conditioning vectors. context: tokens. width, depth,
    heads: size of the stream, a multiple of 2 heads; layers; attention heads. causal: False drops the mask: tokens
    within `context` on both sides see each other, and no past is kept. State: {"start": [B, width]}, and where causal
    "position": [B] int64, tokens seen, "k", "v": [B, depth, heads, context, width / heads], preallocated, the newest
    token last.
    """

    recurrent = False
    ages: Tensor

    def __init__(self, event_shape: tuple[int, ...], *, static: Mapping[str, int] | None = None,
                 token: Mapping[str, int] | None = None, width: int = 128, depth: int = 4, heads: int = 4,
                 context: int = 64, causal: bool = True):
        super().__init__()
        if width % (2 * heads) or min(width, depth, heads, context) < 1:
            raise ValueError("a transformer takes width, depth, heads and context >= 1, width a multiple of 2 * heads; "
                             f"got width={width}, depth={depth}, heads={heads}, context={context}")
        self.event_shape, self.causal = tuple(event_shape), causal
        self.static, self.token = dict(static or {}), dict(token or {})
        self.width, self.depth, self.heads, self.context = width, depth, heads, context
        dim = int(torch.Size(self.event_shape).numel())
        self.level = LevelFeatures()
        self.register_buffer("ages", torch.tensor(AGES), persistent=False)
        self.encoder = nn.Sequential(nn.Linear(dim + self.level.dim + sum(self.token.values()) + len(AGES), width),
                                     nn.SiLU(), nn.Linear(width, width))
        self.start = nn.Sequential(nn.Linear(sum(self.static.values()), width), nn.SiLU(),
                                   nn.Linear(width, width)) if self.static else None
        self.blocks = nn.ModuleList(AttentionBlock(width, heads, depth) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        # The head also reads the token's embedding, before any norm: it must return a nearly clean token as it is, and
        # a normalised stream has lost its size.
        self.head = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, dim))

    def init_state(self, batch: int, cond: Any = None) -> State:
        """The state before the first token; reads the `static` conditioning. Raises ValueError if some is missing."""
        zeros = self.norm.weight.new_zeros
        start = zeros(1, self.width).expand(batch, -1)
        if self.start is not None:
            start = self.start(static_vector(cond, self.static, batch)).to(start.dtype)
        if not self.causal:
            return {"start": start}
        empty = zeros(1, self.depth, self.heads, self.context, self.width // self.heads).expand(batch, -1, -1, -1, -1)
        position = torch.zeros(batch, dtype=torch.long, device=start.device)
        return {"start": start, "position": position, "k": empty, "v": empty}

    def _place(self, state: State, time: int) -> Tensor:
        """Positions of the next `time` tokens: [B, T], or [1, T] where there is no past."""
        token = torch.arange(time, device=state["start"].device)[None]
        return token + state["position"][:, None] if self.causal else token

    def _embed(self, x: Tensor, label: Tensor, state: State, cond: Any) -> Tensor:
        age = torch.exp(-self._place(state, x.shape[1])[..., None] / self.ages).expand(len(x), -1, -1)
        parts = [flat_tokens(x, self.event_shape), self.level(label), age, *gather(cond, "token", self.token)]
        return self.encoder(torch.cat(parts, -1)) + state["start"][:, None]

    def _visible(self, time: int, position: Tensor | None, filled: int, device: torch.device) -> Tensor | None:
        """Mask of the keys that each token sees: [1, 1, T, T] (None: all), or [B, 1, T, filled + T], past in front."""
        token = torch.arange(time, device=device)
        if position is None:
            if time <= self.context + 1:
                return None
            return ((token[:, None] - token).abs() <= self.context)[None, None]
        key = torch.arange(-filled, time, device=device)
        distance, written = token[:, None] - key, key >= -position[:, None]
        return (((distance >= 0) & (distance <= self.context)) & written[:, None])[:, None]

    def _walk(self, h: Tensor, state: State, *, finish: bool) -> tuple[Tensor, State]:
        """Features [B, T, width] of embedded tokens h (void unless `finish`), and the state after the last of them."""
        time, position = h.shape[1], state.get("position")
        filled = 0 if position is None else in_use(position, self.context)
        turn = angles(self._place(state, time), self.width // self.heads)
        h, cache = attend(self.blocks, h, turn, self._visible(time, position, filled, h.device), state, filled,
                          finish=finish)
        return h, state if position is None else {**state, "position": position + time, **cache}

    def absorb(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> State:
        """The state after tokens x [B, T, *E]; neither head nor last layer. ValueError where causal is False."""
        if not self.causal:
            raise ValueError("this transformer was built with causal=False and keeps no past; let its finished tokens "
                             "stay in the sequence, or build it with causal=True")
        return self._walk(self._embed(x, label, state, cond), state, finish=False)[1]

    def forward(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> tuple[Tensor, State]:
        """x [B, T, *E], label [B, T] -> out [B, T, *E], state."""
        code = self._embed(x, label, state, cond)
        h, state = self._walk(code, state, finish=True)
        return self.head(torch.cat([self.norm(h), code], -1)).view(x.shape), state


class AttentionBlock(nn.Module):
    """One layer in two halves; the keys and values of the past join between them."""

    def __init__(self, width: int, heads: int, depth: int):
        super().__init__()
        self.heads, hidden = heads, -(-8 * width // 24) * 8  # 8/3 width, so that SwiGLU has an ordinary MLP's size
        self.norm_attention, self.norm_mlp = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)
        with torch.no_grad():  # the residual stream's variance is then the same at any depth (Radford et al. 2019)
            for last in (self.merge, self.down):
                last.weight.mul_((2 * depth) ** -0.5)

    def project(self, h: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values [B, heads, T, dim] of tokens h [B, T, width], rotated by their positions."""
        q, k, v = self.qkv(self.norm_attention(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return rotated(q, turn), rotated(k, turn), v

    def mix(self, h: Tensor, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """h [B, T, width] after attention to k, v [B, heads, S, dim] where visible [., 1, T, S], and the MLP."""
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        h = h + self.merge(seen.transpose(1, 2).flatten(2))
        gate, value = self.up(self.norm_mlp(h)).chunk(2, -1)
        return h + self.down(F.silu(gate) * value)


def in_use(position: Tensor, context: int) -> int:
    """Places of a cache that attention reads: all, or on a CPU, where counting costs nothing, those in use."""
    return min(context, int(position.max())) if position.device.type == "cpu" else context


def attend(blocks: nn.ModuleList, h: Tensor, turn: tuple[Tensor, Tensor], visible: Tensor | None, state: State,
           filled: int, *, finish: bool) -> tuple[Tensor, State]:
    """Features of embedded tokens h [B, T, width] behind all blocks (void unless `finish`), and the cache after them.

    state: "k" and "v", if any, hold the past, of which the newest `filled` are read; the oldest go.
    """
    cache: dict[str, list[Tensor]] = {"k": [], "v": []}
    for i, block in enumerate(blocks):
        assert isinstance(block, AttentionBlock)
        q, *new = block.project(h, turn)
        seen = dict(zip(cache, new, strict=True))
        for name, value in seen.items():
            if name in state:
                old = state[name][:, i]
                cache[name].append(torch.cat([old, value.to(old.dtype)], 2)[:, :, -old.shape[2]:])
            if filled:
                seen[name] = torch.cat([state[name][:, i, :, -filled:].to(value.dtype), value], 2)
        if finish or i + 1 < len(blocks):  # the last layer's answer to an absorbed token is not read
            h = block.mix(h, q, seen["k"], seen["v"], visible)
    return h, {name: torch.stack(layers, 1) for name, layers in cache.items() if layers}


def angles(place: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """cos, sin [B, 1, T, dim / 2] at positions `place` [B, T], from float64: endless runs have large positions."""
    frequency = ROTARY_BASE ** (-torch.arange(0, dim, 2, device=place.device, dtype=torch.float64) / dim)
    angle = (place[..., None] * frequency)[:, None]
    return angle.cos().float(), angle.sin().float()


def rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions (Su et al. 2021): the two halves of x [B, heads, T, dim] turned as pairs; x's dtype stays."""
    cos, sin = turn
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)
