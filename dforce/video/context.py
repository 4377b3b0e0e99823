"""Videos that continue real ones, with the real ones as conditioning, for tuning a world model by a reward."""

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Precond
from dforce.core.tree import State
from dforce.video.model import VideoModel


class AfterContext(Precond):
    """A denoiser whose sequences begin after the real tokens in their conditioning; it shares the weights of another.

    cond["static"]["context"]: [B, N, *event], clean; "context_action": [B, N, A] where the model takes actions.
    `init_state` absorbs them with their gradient, so that a replayed trace has the state of the weights it is replayed
    under. Without a context it is the denoiser as it was. It is itself the module that learns, not a wrapper of it, for
    objectives ask the module for its initial state.
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
