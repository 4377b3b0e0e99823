"""Short generated videos that go on from real ones, with the real ones as conditioning: what a policy is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Precond
from dforce.core.tree import State
from dforce.video.model import VideoModel


class AfterContext(Precond):
    """The same network with the same weights, whose sequences begin after the real tokens of their conditioning.

    cond["static"]["context"]: [B, N, *event], clean; "context_action": [B, N, A] beside it where the model takes
    actions. `init_state` absorbs them, with a gradient where one is wanted: a trace replayed under other weights has
    the state that these make of the context, and a reference its own. Without a context it is the network as it was.
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
    """Conditioning to go on from the first `context` frames of clips [B, T, C, H, W], told their actions [B, T, A].

    The tokens asked for are those of the frames after. ValueError where frames or actions do not fit the model.
    """
    static, token_cond = {"context": model.tokens(frames[:, :context])}, model.cond(actions)
    if token_cond is None:
        return {"static": static, "token": {}}
    action, known = token_cond["token"]["action"], context // model.stack
    return {"static": {**static, "context_action": action[:, :known]}, "token": {"action": action[:, known:]}}
