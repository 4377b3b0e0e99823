"""A trained video model, and what its tokens are: frames, `stack` at a time, with the actions that led there."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Precond
from dforce.core.schedule import Schedule
from dforce.core.tree import State
from dforce.train.checkpoint import CheckpointError, find, load
from dforce.video.latents import Latents, load_latents


class VideoModel(NamedTuple):
    """A denoiser of frames, and what its tokens mean. layout, config: as the checkpoint has them."""

    denoiser: Precond
    schedule: Schedule
    shape: tuple[int, int, int]  # (C, H, W) of a frame
    stack: int  # frames in a token
    actions: int  # numbers of an action, 0 for a model without
    data: str  # what it was trained on, "" if unknown
    window: int  # frames of a training window, 0 if unknown
    layout: dict[str, Any]
    config: dict[str, Any]
    checkpoint: Path
    latents: Latents | None = None  # the autoencoder whose latents are the tokens, None for pixels

    @property
    def device(self) -> torch.device:
        """The device of the network and its tokens."""
        return self.schedule.alpha.device

    @property
    def real_actions(self) -> bool:
        """Are its actions real numbers, normalised by the layout's action_scale, and no choices?"""
        return bool(self.layout.get("action_scale"))

    @property
    def event(self) -> tuple[int, int, int]:
        """The shape of a token."""
        if self.latents is not None:
            return self.latents.event_shape(self.shape)
        return self.stack * self.shape[0], *self.shape[1:]

    def context_frames(self, frames: int | None) -> int:
        """The number of real frames to begin with, in whole tokens, or ValueError; None for half a training window."""
        if frames is None:
            return max(self.window // 2, self.stack) // self.stack * self.stack
        if frames < 0:
            raise ValueError(f"context is a number of frames >= 0, got {frames}")
        if frames % self.stack:
            raise ValueError(f"context must fill whole tokens of {self.stack} frames, got {frames}")
        return frames

    def tokens(self, frames: Tensor) -> Tensor:
        """frames [B, T * stack, C, H, W] -> tokens [B, T, *event]. ValueError where these do not fill."""
        if tuple(frames.shape[2:]) != self.shape:
            raise ValueError(f"the model has frames {self.shape}, got {tuple(frames.shape[2:])}: channels, height, "
                             "width; load the clips at the model's size")
        if frames.shape[1] % self.stack:
            raise ValueError(f"{frames.shape[1]} frames do not fill tokens of {self.stack}")
        if self.latents is not None:
            return self.latents.encode(frames) if frames.shape[1] else frames.new_empty(len(frames), 0, *self.event)
        return frames.unflatten(1, (-1, self.stack)).flatten(2, 3)

    def frames(self, tokens: Tensor) -> Tensor:
        """tokens [B, T, *event] -> frames [B, T * stack, C, H, W]."""
        if self.latents is not None:
            return self.latents.decode(tokens)
        return tokens.unflatten(2, (self.stack, -1)).flatten(1, 2)

    def cond(self, actions: Tensor | None) -> Cond | None:
        """The conditioning of tokens from one action a frame, [B, T * stack, A]; None for a model without actions."""
        if not self.actions:
            return None
        if actions is None or actions.shape[-1] != self.actions:
            got = "none" if actions is None else f"{actions.shape[-1]} numbers"
            raise ValueError(f"the model takes actions of {self.actions} numbers a frame, got {got}")
        return {"token": {"action": actions.unflatten(1, (-1, self.stack)).flatten(2, 3)}}


def load_video(checkpoint: str | Path, *, device: torch.device | str = "cpu", raw: bool = False,
               trust: Iterable[str] | str | None = None) -> VideoModel:
    """The model in a checkpoint of `dforce train video`, arguments as in `load`; else CheckpointError."""
    bundle = load(checkpoint, device=device, raw=raw, trust=trust)
    event, stack = [int(n) for n in bundle.layout["event_shape"]], int(bundle.layout.get("stack", 1))
    if len(event) != 3 or event[0] % stack or bundle.layout.get("classes"):
        raise CheckpointError(f"{checkpoint} is no model of video: its tokens have the shape {event}"
                              f"{' and classes' if bundle.layout.get('classes') else ''}; train one with "
                              "`dforce train video`")
    latents = load_latents(bundle.layout["latents"], device=device) if bundle.layout.get("latents") else None
    shape = event[0] // stack, event[1], event[2]
    if latents is not None:
        height, width = bundle.layout["size"]
        shape = int(bundle.layout["channels"]), int(height), int(width)
    numbers = int((bundle.layout.get("token") or {}).get("action", 0))
    for parameter in bundle.denoiser.parameters():
        parameter.requires_grad_(False)
    return VideoModel(bundle.denoiser, bundle.schedule, shape, stack, numbers // stack,
                      str(bundle.config.get("data", "")), int(bundle.config.get("frames") or 0), bundle.layout,
                      bundle.config, find(checkpoint), latents)


class AfterContext(Precond):
    """A denoiser whose sequences begin after the real tokens in their conditioning; it shares the weights of another.

    cond["static"]["context"]: [B, N, *event], clean; "context_action": [B, N, A] where the model takes actions. They
    are absorbed with their gradient, so that a replayed trace has the state of the weights that replay it.
    """

    def __init__(self, denoiser: Precond):
        super().__init__(denoiser.net, denoiser.schedule, denoiser.predict, data_std=denoiser.data_std)

    def init_state(self, batch: int, cond: Cond | None = None) -> State:
        static = (cond or {}).get("static") or {}
        state, known = super().init_state(batch, cond), static.get("context")
        if known is None or not known.shape[1]:
            return state
        level = torch.zeros(known.shape[:2], dtype=torch.long, device=known.device)
        actions = {"token": {"action": static["context_action"]}} if "context_action" in static else None
        return self.remember(known, level, state, actions)


def continuation_cond(model: VideoModel, frames: Tensor, actions: Tensor | None, context: int) -> Cond:
    """The conditioning after the first `context` frames of clips [B, T, C, H, W] with actions, or ValueError."""
    static, token_cond = {"context": model.tokens(frames[:, :context])}, model.cond(actions)
    if token_cond is None:
        return {"static": static, "token": {}}
    action, known = token_cond["token"]["action"], context // model.stack
    return {"static": {**static, "context_action": action[:, :known]}, "token": {"action": action[:, known:]}}
