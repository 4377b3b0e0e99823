"""A denoiser that remembers the last tokens only: policies without memory, built from one that has it."""

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.tree import State, leaves, reset
from dforce.data.token_layout import KIND
from dforce.guidance.wrapper import Wrapper


class Windowed(Wrapper):
    """Denoises a token after the last `tokens` absorbed ones, as if the sequence had begun with them.

    State: {"start": of a sequence, "inner": after the tokens, "x": [B, tokens, E], "level": [B, tokens], "kind":
    [B, tokens, cycle], "count": [B], how many of them there are, the newest last}.
    """

    recurrent = False

    def __init__(self, denoiser: Denoiser, tokens: int, *, width: int, cycle: int):
        super().__init__(denoiser)
        self.tokens, self.width, self.cycle = tokens, width, cycle

    def init_state(self, batch: int, cond: Cond | None = None) -> State:
        start = self.denoiser.init_state(batch, cond)
        device = leaves(start)[0].device
        x = torch.zeros(batch, self.tokens, self.width + self.cycle, device=device)
        level = torch.zeros(batch, self.tokens, dtype=torch.long, device=device)
        return {"start": start, "inner": start, "x": x[..., :self.width], "level": level, "kind": x[..., self.width:],
                "count": level.new_zeros(batch)}

    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        new = {"x": x, "level": level, "kind": (cond or {})["token"][KIND]}
        recent = {name: torch.cat([state[name], value], 1)[:, -self.tokens:] for name, value in new.items()}
        count = (state["count"] + x.shape[1]).clamp(max=self.tokens)
        inner = state["start"]
        for token in range(self.tokens):
            now = slice(token, token + 1)
            after = self.denoiser.absorb(recent["x"][:, now], recent["level"][:, now], inner,
                                         {**(cond or {}), "token": {KIND: recent["kind"][:, now]}})
            inner = reset(inner, after, token >= self.tokens - count)
        return {"start": state["start"], "inner": inner, "count": count, **recent}

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        return self.denoiser(x, level, state["inner"], cond)[0], state
