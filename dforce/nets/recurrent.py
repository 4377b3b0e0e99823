"""The thin recurrent network for vector tokens (plans, actions): only the GRU walks through time."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dforce.nets import branches, gru
from dforce.nets.embed import LevelFeatures, flat_tokens, gather, static_vector

BUILDABLE = ("RecurrentNet",)  # by name, in a configuration

State = dict[str, Tensor]


class RecurrentNet(nn.Module):
    """Diffusion Forcing's two equations (Chen et al. 2024, section 3.1) with a thin recurrence::

        e_t = encoder(x_t, k_t, cond_t)     z_t = GRU(z_{t-1}, e_t)     out_t = head(z_{t-1}, e_t)

    Encoder and head run batched over all B * T tokens; out [B, T, *E] at token t sees x_t and the latent before it.

    event_shape: *E of one token. width, depth: size of the latent, number of GRU layers. State: {"z": [B, depth,
    width]}. static: names and sizes of the cond["static"] vectors that the initial latent reads, such as {"start": 4}.
    token: those of the cond["token"] vectors that the encoder reads.
    """

    causal = True
    recurrent = True

    def __init__(self, event_shape: tuple[int, ...], *, static: Mapping[str, int] | None = None,
                 token: Mapping[str, int] | None = None, width: int = 256, depth: int = 1):
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.static, self.token = dict(static or {}), dict(token or {})
        self.width, self.depth = width, depth
        dim = int(torch.Size(self.event_shape).numel())
        self.level = LevelFeatures()
        self.encoder = nn.Sequential(nn.Linear(dim + self.level.dim + sum(self.token.values()), width), nn.SiLU(),
                                     nn.Linear(width, width))
        self.core = nn.GRU(width, width, depth, batch_first=True)
        self.head = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width),
                                  nn.SiLU(), nn.Linear(2 * width, dim))
        self.null = nn.Parameter(torch.zeros(depth, width))
        self.start = nn.Sequential(nn.Linear(sum(self.static.values()), width), nn.SiLU(),
                                   nn.Linear(width, depth * width)) if self.static else None

    def init_state(self, batch: int, cond: Any = None) -> State:
        """The latent before the first token; reads the `static` conditioning. Raises ValueError if some is missing."""
        z = self.null.expand(batch, -1, -1)
        if self.start is not None:
            z = z + self.start(static_vector(cond, self.static, batch)).to(z.dtype).view(batch, self.depth, self.width)
        return {"z": z}

    def _encode(self, x: Tensor, label: Tensor, cond: Any) -> Tensor:
        parts = [flat_tokens(x, self.event_shape), self.level(label), *gather(cond, "token", self.token)]
        return self.encoder(torch.cat(parts, -1))

    def _walk(self, code: Tensor, state: State) -> tuple[Tensor, State]:
        """Latents after every token [B, T, width], and the state after the last."""
        if code.device.type == "cuda" and code.dtype != self.null.dtype:
            with torch.autocast("cuda", enabled=False):  # cuDNN's GRU has no bfloat16, and would be handed float16
                z, state = self._walk(code.to(self.null.dtype), state)
            return z.to(code.dtype), state
        if code.shape[1] == 1:  # a single step is cheaper than a sequence of one
            return self._step(code[:, 0], state)
        before = state["z"].transpose(0, 1).contiguous().to(code.dtype)
        if code.device.type == "cuda":
            z, last = gru.cudnn(self.core, code, before)
        else:
            z, last = gru.unroll(self.core, code, before) if gru.pays(self.core, code) else self.core(code, before)
        return z, {"z": last.transpose(0, 1).to(state["z"].dtype)}

    def _step(self, code: Tensor, state: State) -> tuple[Tensor, State]:
        latents, old = [], state["z"].to(code.dtype)
        for layer, weights in enumerate(self.core.all_weights):
            code = torch.gru_cell(code, old[:, layer].contiguous(), *(w.to(code.dtype) for w in weights))
            latents.append(code)
        return code[:, None], {"z": torch.stack(latents, 1).to(state["z"].dtype)}

    def absorb(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> State:
        """The state after tokens x [B, T, *E]; no head."""
        return self._walk(self._encode(x, label, cond), state)[1]

    def forward(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> tuple[Tensor, State]:
        """x [B, T, *E], label [B, T] -> out [B, T, *E], state."""
        code = self._encode(x, label, cond)
        before = state["z"][:, -1:].to(code.dtype)
        z, state = self._walk(code, state)
        before = torch.cat([before, z[:, :-1]], 1) if code.shape[1] > 1 else before
        out = self.head(torch.cat([before, code], -1))
        return out.view(x.shape), state

    def may_branch(self, x: Tensor) -> bool:
        """Is `branched` faster for tokens like x [B, T, *E]?"""
        return gru.pays(self.core, x)

    def branched(self, x: Tensor, label: Tensor, state: State, begins: list[int], time: int, parents: list[int],
                 cond: Any = None) -> tuple[Tensor, State, State]:
        """`forward` for sequences that begin at different tokens and all end at `time`; see `nets.branches`.

        x [N, 1, *E], label [N, 1]: their tokens, sequence after sequence, in the order of the tokens `begins`.
        state: of the first sequences; the last len(parents) continue the sequences of the numbers `parents`.
        Returns out [N, 1, *E], the states with which the latter begin, and the states behind the former.
        """
        code = self._encode(x, label, cond)[:, 0]
        z, lanes = state["z"].to(code.dtype), branches.lanes(begins, time, parents)
        before, after = branches.unroll_branches(self.core, code, z.transpose(0, 1).contiguous(), lanes)
        out = self.head(torch.cat([before[-1], code], -1))
        last = torch.cat([lanes.first[1:], lanes.first.new_tensor([len(code)])]) - 1
        began, ended = (torch.stack([layer.index_select(0, cells) for layer in latents], 1).to(state["z"].dtype)
                        for latents, cells in ((before, lanes.first[len(z):]), (after, last[:len(z)])))
        return out.view(x.shape), {"z": began}, {"z": ended}
