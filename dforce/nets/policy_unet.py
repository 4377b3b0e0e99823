"""Diffusion Policy's network: a U-Net over the actions of a chunk, told what was seen by FiLM or by cross-attention."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dforce.nets.embed import GROUPS, LevelFeatures, check_sizes, gather, static_vector
from dforce.nets.temporal import ConvUNet1d, level_embedding
from dforce.nets.transformer import AGES, angles, rotated

BUILDABLE = ("PolicyUNet",)  # by name, in a configuration

State = dict[str, Tensor]
HEAD = 16  # numbers of an attention head


class PolicyUNet(ConvUNet1d):
    """Denoises a chunk of actions after the observations before it; it never reads other actions.

    Convolutions run over the actions of one token. Every residual block is modulated by scale and shift (FiLM) from an
    embedding of the token's level and, without heads, the last `observations` side by side (Chi et al. 2023, section 4;
    before an episode's first observation stand copies of it). With heads the positions attend instead to all these
    observations, after every pair of blocks (Agarwal et al. 2026, arXiv 2606.16447), with rotary positions.

    An observation is read with its level, so a network trained with `dropout` knows which are missing. Tokens follow in
    the turn of `TokenLayout`; observation tokens come out as they came in, the rest of an action token as zeros.

    event_shape: (E,). tokens: the fields of a `TokenLayout`. static: vectors, such as {"first": 10}, that FiLM reads.
    width, multipliers: channels of each resolution. observations: how many are remembered. heads: of attention, if any.
    State: {"seen": [B, N, W], tokens of observations, the newest last, "count": [B], tokens so far, "start": static}.
    """

    causal = True
    recurrent = False
    ages: Tensor

    def __init__(self, event_shape: tuple[int, ...], *, tokens: Mapping[str, Any], token: Mapping[str, int],
                 static: Mapping[str, int] | None = None, width: int = 32, multipliers: Sequence[int] = (1, 2),
                 observations: int = 2, heads: int | None = None):
        super().__init__()
        check_sizes(width, multipliers)
        self.parts, self.chunk, self.action = dict(tokens["parts"]), int(tokens["chunk"]), int(tokens["action"])
        if self.chunk % 2 ** (len(multipliers) - 1) or observations < 1:
            raise ValueError(f"a U-Net of {len(multipliers)} resolutions takes chunks of a multiple of "
                             f"{2 ** (len(multipliers) - 1)} actions, and observations >= 1; got chunk={self.chunk}, "
                             f"observations={observations}")
        self.event_shape, self.static, self.token = tuple(event_shape), dict(static or {}), dict(token)
        self.seen, self.memory = max(self.parts.values()), observations * len(self.parts)
        sizes = [self.action, *(width * m for m in multipliers)]
        self.level = LevelFeatures()
        self.embed = level_embedding(self.level.dim, width)
        features = width + sum(self.static.values()) + (0 if heads else self.memory * (self.seen + 1))
        self.add_layers(sizes, self.action, features, scale=True)
        self.attention = None
        if heads:
            self.register_buffer("ages", torch.tensor(AGES), persistent=False)
            inputs, self.heads = self.seen + 1 + len(self.parts) + len(AGES), heads
            self.read = nn.Sequential(nn.Linear(inputs, heads * HEAD), nn.SiLU(), nn.Linear(heads * HEAD, heads * HEAD))
            channels = [*sizes[1:], sizes[-1], *sizes[-2:0:-1]]
            self.attention = nn.ModuleList(_CrossAttention(size, heads) for size in channels)

    def init_state(self, batch: int, cond: Any = None) -> State:
        """The state of an episode that begins. ValueError if `static` conditioning is missing."""
        zeros = next(self.embed.parameters()).new_zeros
        start = static_vector(cond, self.static, batch) if self.static else zeros(batch, 0)
        return {"seen": zeros(batch, self.memory, self.seen + 1), "start": start,
                "count": torch.zeros(batch, dtype=torch.long, device=start.device)}

    def absorb(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> State:
        """The state after tokens x [B, T, E]."""
        return self._after(state, self._observed(x, label, state, self._places(cond)))

    def forward(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> tuple[Tensor, State]:
        """x [B, T, E], label [B, T] -> out [B, T, E], state."""
        places = self._places(cond)
        seen = self._observed(x, label, state, places)
        acted = [t for t, place in enumerate(places) if place == len(self.parts)]
        if not acted:
            return x, self._after(state, seen)
        before = [t - number for number, t in enumerate(acted)]  # observation tokens of x before each
        noisy = x[:, acted, :self.chunk * self.action].reshape(-1, self.chunk, self.action).transpose(1, 2)
        features = [self.embed(self.level(label[:, acted])), state["start"][:, None].expand(-1, len(acted), -1)]
        if self.attention is None:
            features.append(seen.unfold(1, self.memory, 1)[:, before].transpose(2, 3).flatten(2))
            mixing = {}
        else:
            mixing = {"mix": self._attending(seen, state, before)}
        out = self.walk(noisy, torch.cat(features, -1).flatten(0, 1)[..., None], **mixing)
        chunk = F.pad(out.transpose(1, 2).reshape(len(x), len(acted), -1), (0, x.shape[2] - self.chunk * self.action))
        return x.index_copy(1, torch.tensor(acted, device=x.device), chunk.to(x.dtype)), self._after(state, seen)

    def _places(self, cond: Any) -> list[int]:
        """The place of each token in the cycle of observations and actions, which is that of all rows."""
        kinds: list[int] = gather(cond, "token", self.token)[0][0].argmax(-1).tolist()
        return kinds

    def _observed(self, x: Tensor, label: Tensor, state: State, places: list[int]) -> Tensor:
        """The remembered observation tokens and those of x, [B, N + M, W], each with its level."""
        if tuple(x.shape[2:]) != self.event_shape:
            raise ValueError(f"this network takes tokens [B, T, {self.event_shape[0]}], got {[*x.shape]}")
        shown = [t for t, place in enumerate(places) if place < len(self.parts)]
        new = torch.cat([x[:, shown, :self.seen], label[:, shown, None].to(x.dtype) / 10], -1)
        seen = state["seen"].to(x.dtype)
        if shown and self.attention is None:
            seen = self._begun(seen, new, state["count"], [places[t] for t in shown])
        return torch.cat([seen, new], 1)

    def _begun(self, seen: Tensor, new: Tensor, count: Tensor, places: list[int]) -> Tensor:
        """The memory of rows that see their first observation is filled with it, part by part."""
        slot, parts = torch.arange(self.memory, device=seen.device), len(self.parts)
        for number in range(min(len(places), parts)):
            place = (slot + places[0]) % parts == places[number]
            first = (count + number < parts)[:, None] & place
            seen = torch.where(first[..., None], new[:, number, None], seen)
        return seen

    def _after(self, state: State, seen: Tensor) -> State:
        """The state after the observation tokens `seen`."""
        return {**state, "seen": seen[:, -self.memory:].to(state["seen"].dtype),
                "count": state["count"] + seen.shape[1] - self.memory}

    def _attending(self, seen: Tensor, state: State, before: list[int]) -> Any:
        """mix of `walk`: each position attends to the last observations that came before its token."""
        assert self.attention is not None
        parts, rows, total = len(self.parts), len(seen), seen.shape[1]
        number = state["count"][:, None] - self.memory + torch.arange(total, device=seen.device)   # [B, N + M]
        newest = state["count"][:, None] + torch.tensor(before, device=seen.device)                # [B, A]
        kind = F.one_hot(number % parts, parts).to(seen.dtype)
        age = torch.exp(-(number.clamp(min=0) // parts)[..., None] / self.ages).to(seen.dtype)
        code = self.read(torch.cat([seen, kind, age], -1))
        old = newest[:, :, None] - number[:, None]                                                  # [B, A, N + M]
        visible = (old > 0) & (old <= self.memory) & (number >= 0)[:, None]
        turns = angles(newest - 1, HEAD), angles(number, HEAD)
        attention = self.attention

        def mix(place: int, h: Tensor) -> Tensor:
            layer, length = attention[place], h.shape[2]
            assert isinstance(layer, _CrossAttention)
            cos, sin = (each.repeat_interleave(length, 2) for each in turns[0])
            masks = visible.repeat_interleave(length, 1)[:, None]
            return layer(h, code, (cos, sin), turns[1], masks, rows)

        return mix


class _CrossAttention(nn.Module):
    """Adds to features h [B * A, C, L] what their positions read in `code` [B, S, heads * HEAD]."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.query = nn.GroupNorm(GROUPS, channels), nn.Linear(channels, heads * HEAD, bias=False)
        self.pairs, self.out = nn.Linear(heads * HEAD, 2 * heads * HEAD, bias=False), nn.Linear(heads * HEAD, channels)

    def forward(self, h: Tensor, code: Tensor, turn: tuple[Tensor, Tensor], place: tuple[Tensor, Tensor],
                visible: Tensor, rows: int) -> Tensor:
        query = self.query(self.norm(h).transpose(1, 2)).view(rows, -1, self.heads, HEAD).transpose(1, 2)
        key, value = self.pairs(code).unflatten(-1, (2, self.heads, HEAD)).permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(rotated(query, turn), rotated(key, place), value, attn_mask=visible)
        return h + self.out(read.transpose(1, 2).flatten(2)).view(*h.transpose(1, 2).shape).transpose(1, 2)
