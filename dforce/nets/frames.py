"""A causal transformer over latent maps of frames: a place sees all places of its frame and of frames before it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dforce.nets.conv_blocks import Decoder, Encoder, Features, FrameEmbedding, Layout, frames, runner
from dforce.nets.transformer import AGES, AttentionBlock, angles, attend, in_use

BUILDABLE = ("FrameTransformerNet",)  # by name, in a configuration

State = dict[str, Tensor]


class FrameTransformerNet(nn.Module):
    """The encoder and decoder of `ConvGRUNet`, and between them attention in place of the recurrence.

    The P = h w places of the coarsest map of frame t are P tokens. They see each other and those of the `context`
    frames before t, each as it was shown, at its own noise level; so the past may be shown at any level (history
    guidance). A frame sees no further in any layer, whether the past is in the sequence or in the state. Rotary angles
    encode the number of frames in between (Su et al. 2021), a learnt vector the place, fading features the time since
    the sequence began, so that a long rollout shows nothing unseen.

    event_shape, token, width, multipliers, patch, depth, checkpointing: as in `ConvGRUNet`. context: frames.
    layers, heads: of the transformer, whose width is the coarsest map's channels, a multiple of 2 * heads.
    State: {"position": [B] int64, frames seen, "k", "v": [B, layers, heads, context * P, dim], the newest frame last}.
    """

    causal = True
    recurrent = False
    ages: Tensor

    def __init__(self, event_shape: tuple[int, ...], *, token: Mapping[str, int] | None = None, width: int = 16,
                 multipliers: Sequence[int] = (1, 2, 4), patch: int = 2, depth: int = 1, layers: int = 4,
                 heads: int = 4, context: int = 16, checkpointing: bool = False):
        super().__init__()
        layout = Layout(event_shape, width=width, multipliers=multipliers, patch=patch)
        self.width = layout.channels[-1]
        if min(depth, layers, heads, context) < 1 or self.width % (2 * heads):
            raise ValueError("depth, layers, heads and context must be at least 1, and width times the last multiplier "
                             f"a multiple of 2 * heads; got depth={depth}, layers={layers}, heads={heads}, "
                             f"context={context}, {self.width} channels")
        self.event_shape, self.token, self.coarse = layout.shape, dict(token or {}), layout.coarse
        self.layers, self.heads, self.context, self.checkpointing = layers, heads, context, checkpointing
        self.places = self.coarse[0] * self.coarse[1]
        size = 4 * width
        self.register_buffer("ages", torch.tensor(AGES), persistent=False)
        self.told = FrameEmbedding(self.token, size)
        self.encoder = Encoder(layout, depth=depth, embedding=size)
        self.place = nn.Parameter(0.02 * torch.randn(self.places, self.width))
        self.age = nn.Linear(len(AGES), self.width)
        self.tell = nn.Linear(size, self.width)
        self.blocks = nn.ModuleList(AttentionBlock(self.width, heads, layers) for _ in range(layers))
        self.norm = nn.RMSNorm(self.width)
        self.decoder = Decoder(layout, more=self.width, depth=depth, embedding=size)

    def init_state(self, batch: int, cond: Any = None) -> State:
        """The state before the first frame; it does not depend on the conditioning."""
        empty = self.place.new_zeros(1, self.layers, self.heads, self.context * self.places, self.width // self.heads)
        empty = empty.expand(batch, -1, -1, -1, -1)
        return {"position": torch.zeros(batch, dtype=torch.long, device=empty.device), "k": empty, "v": empty}

    def _encode(self, x: Tensor, label: Tensor, cond: Any) -> tuple[Tensor, Tensor, Features]:
        """Frames [B T, C, H, W], their embedding [B T, size], and their features."""
        flat, embedding = frames(x, self.event_shape), self.told(label, cond)
        return flat, embedding, self.encoder(flat, embedding, runner(self.checkpointing))

    def _embed(self, code: Tensor, embedding: Tensor, number: Tensor) -> Tensor:
        """Tokens [B, T P, width] of maps [B T, width, h, w] and frame numbers [B, T]."""
        age = self.age(torch.exp(-number[..., None] / self.ages))
        embedding = self.tell(embedding).unflatten(0, number.shape)
        maps = code.flatten(2).transpose(1, 2).unflatten(0, number.shape)  # [B, T, P, width]
        return (maps + (age + embedding)[:, :, None] + self.place).flatten(1, 2)

    def _visible(self, time: int, position: Tensor, filled: int) -> Tensor:
        """Mask of the places that each place sees: [B, 1, T P, (filled + T) P], the past in front."""
        now, then = (torch.arange(first, time, device=position.device) for first in (0, -filled))
        distance, written = now[:, None] - then, then >= -position[:, None]
        seen = ((distance >= 0) & (distance <= self.context)) & written[:, None]
        return seen.repeat_interleave(self.places, 1).repeat_interleave(self.places, 2)[:, None]

    def _walk(self, code: Tensor, embedding: Tensor, state: State, time: int, *, finish: bool) -> tuple[Tensor, State]:
        """Maps [B T, width, h, w] of every frame (void unless `finish`), and the state after the last."""
        number = torch.arange(time, device=code.device) + state["position"][:, None]
        filled = in_use(state["position"], self.context)
        turn = angles(number.repeat_interleave(self.places, 1), self.width // self.heads)
        h, cache = attend(self.blocks, self._embed(code, embedding, number), turn,
                          self._visible(time, state["position"], filled), state, filled * self.places, finish=finish)
        maps = self.norm(h).unflatten(1, (time, self.places)).flatten(0, 1).transpose(1, 2)
        return maps.unflatten(2, self.coarse), {"position": state["position"] + time, **cache}

    def absorb(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> State:
        """The state after frames x [B, T, C, H, W]; neither decoder nor last layer."""
        _, embedding, features = self._encode(x, label, cond)
        return self._walk(features[-1], embedding, state, x.shape[1], finish=False)[1]

    def forward(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> tuple[Tensor, State]:
        """x [B, T, C, H, W], label [B, T] -> out [B, T, C, H, W], state."""
        flat, embedding, features = self._encode(x, label, cond)
        known, state = self._walk(features[-1], embedding, state, x.shape[1], finish=True)
        out = self.decoder(flat, features, known, embedding, runner(self.checkpointing))
        return out.unflatten(0, x.shape[:2]), state
