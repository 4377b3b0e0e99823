"""The thin ConvGRU U-Net for frames (video): only a small latent map walks through time."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dforce.nets.conv_blocks import Decoder, Encoder, Features, FrameEmbedding, Layout, frames, runner

BUILDABLE = ("ConvGRUNet",)  # by name, in a configuration

State = dict[str, Tensor]

NOTHING = -20.0  # log-SNR in nats of the missing frame before the first one
REMEMBER = 1.0  # initial bias of the gate that keeps a latent, so that most of it stays (Gers et al. 2000)


class ConvGRUNet(nn.Module):
    """Diffusion Forcing's two equations (Chen et al. 2024, section 3.1) over frames, with a thin recurrence::

        e_t = encoder(x_t, k_t, a_t)     z_t = ConvGRU(z_{t-1}, e_t)     out_t = decoder(z_{t-1}, e_t, x_t, k_t, a_t)

    Encoder, decoder and the GRU's convolutions of e_t run batched over all B * T frames; only the convolution of
    z_{t-1} walks through time, on the coarsest map. The decoder sees e_t in all resolutions (a U-Net). With `reach` >
    0, x_t and k_t above are the frame and the one before it, as noisy as it was shown, with both levels: details need
    not pass through the small latent, and pixels may be taken from up to reach // 2 pixels away in it (`Last`).

    event_shape: (C, H, W) of a token. token: names and sizes of cond["token"] vectors, such as {"action": 3}. width,
    multipliers: their products are the channels of each resolution, finest first. patch: side in pixels of the squares
    that the finest resolution sees as one. latent: channels of the map that is carried. depth: residual blocks in each
    resolution, on each way. reach: odd, or 0; twice the distance in pixels that content moves from frame to frame, plus
    one. checkpointing: blocks recompute their activations for the gradient: less memory for a third more arithmetic.
    State: {"z": [B, latent, h, w]}, and with `reach` the last {"frame": [B, C, H, W], "label": [B, 1]}.
    """

    causal = True
    recurrent = True

    def __init__(self, event_shape: tuple[int, ...], *, token: Mapping[str, int] | None = None, width: int = 32,
                 multipliers: Sequence[int] = (1, 2), patch: int = 2, latent: int = 32, depth: int = 1,
                 reach: int = 5, checkpointing: bool = False):
        super().__init__()
        layout = Layout(event_shape, width=width, multipliers=multipliers, patch=patch)
        if min(latent, depth) < 1:
            raise ValueError(f"latent and depth must be at least 1, got latent={latent}, depth={depth}")
        if reach < 0 or (reach and reach % 2 == 0):
            raise ValueError(f"reach is the side of a square of pixels with one in its middle: odd, or 0; got {reach}")
        self.event_shape, self.token, self.latent = layout.shape, dict(token or {}), latent
        self.coarse, self.reach, self.checkpointing = layout.coarse, reach, checkpointing
        size, together = 4 * width, 2 if reach else 1
        self.told = FrameEmbedding(self.token, size, together)
        self.encoder = Encoder(layout, depth=depth, embedding=size, together=together)
        self.inward = nn.Conv2d(layout.channels[-1], 3 * latent, 3, padding=1)
        self.across = nn.Conv2d(latent, 3 * latent, 3, padding=1)
        self.decoder = Decoder(layout, more=latent, depth=depth, embedding=size, reach=reach)
        self.null = nn.Parameter(torch.zeros(latent, *self.coarse))
        with torch.no_grad():
            self.inward.bias[latent:2 * latent] += REMEMBER  # type: ignore[index]
        # as frames are: else every convolution copies its weights first
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def init_state(self, batch: int, cond: Any = None) -> State:
        """The learnt latent before the first frame, and no frame; it does not depend on the conditioning."""
        state = {"z": self.null.expand(batch, -1, -1, -1)}
        if not self.reach:
            return state
        return {**state, "frame": self.null.new_zeros(batch, *self.event_shape),
                "label": self.null.new_full((batch, 1), NOTHING)}

    def _encode(self, x: Tensor, label: Tensor, state: State, cond: Any) -> tuple[Tensor, Tensor, Features, State]:
        """Frames as seen [B T, C or 2 C, H, W], their embedding [B T, size], their features, and the state's frame."""
        if not self.reach:
            seen, embedding, kept = frames(x, self.event_shape), self.told(label, cond), {}
        else:
            now = frames(x, self.event_shape)
            before = torch.cat([state["frame"][:, None].to(x.dtype), x[:, :-1]], 1)
            seen = torch.cat([now, frames(before, self.event_shape)], 1)
            embedding = self.told(label, cond, torch.cat([state["label"].to(label.dtype), label[:, :-1]], 1))
            kept = {"frame": x[:, -1], "label": label[:, -1:]}
        return seen, embedding, self.encoder(seen, embedding, runner(self.checkpointing)), kept

    def _walk(self, code: Tensor, state: State, time: int) -> tuple[Tensor, State]:
        """Latents before every frame [B, T, latent, h, w], and the state after the last; code [B T, channels, h, w]."""
        drive = self.inward(code).unflatten(0, (-1, time)).unbind(1)
        z = state["z"].to(drive[0].dtype)
        before = []
        for step in drive:
            before.append(z)
            z = self._cell(step, z)
        return torch.stack(before, 1), {"z": z.to(state["z"].dtype)}

    def _cell(self, drive: Tensor, z: Tensor) -> Tensor:
        """One step of a convolutional GRU (Ballas et al. 2016), its reset gate behind the convolution, as in
        torch.nn.GRU: one convolution serves all gates. drive: [B, 3 latent, h, w].
        """
        a_gates, a_new = drive.split((2 * self.latent, self.latent), 1)
        g_gates, g_new = self.across(z).split((2 * self.latent, self.latent), 1)
        reset, keep = (a_gates + g_gates).sigmoid().chunk(2, 1)
        return torch.lerp((a_new + reset * g_new).tanh(), z, keep)

    def absorb(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> State:
        """The state after frames x [B, T, C, H, W]; no decoder."""
        _, _, features, kept = self._encode(x, label, state, cond)
        return {**self._walk(features[-1], state, x.shape[1])[1], **kept}

    def forward(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> tuple[Tensor, State]:
        """x [B, T, C, H, W], label [B, T] -> out [B, T, C, H, W], state."""
        seen, embedding, features, kept = self._encode(x, label, state, cond)
        before, walked = self._walk(features[-1], state, x.shape[1])
        out = self.decoder(seen, features, before.flatten(0, 1), embedding, runner(self.checkpointing))
        return out.unflatten(0, x.shape[:2]), {**walked, **kept}
