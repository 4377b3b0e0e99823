"""The structure of the official code, in words of our own: the whole network once a token, the sampler once a cell.

Encoder, recurrence and head run token after token in a Python loop, in training and in sampling; sampling evaluates
every token in every row of the schedule matrix, pure noise and finished ones included. The weights are those of a
`RecurrentNet`, so that both compute the same numbers.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dforce.core.denoiser import Cond
from dforce.core.schedule import Schedule
from dforce.nets.recurrent import RecurrentNet, State

CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of a layer of nn.GRU, in the order that a cell takes them


class TokenByToken(nn.Module):
    """`net` evaluated whole, once a token. The same interface, the same weights (shared), the same results."""

    causal = True
    recurrent = True

    def __init__(self, net: RecurrentNet):
        super().__init__()
        self.net = net

    def init_state(self, batch: int, cond: Cond | None = None) -> State:
        return self.net.init_state(batch, cond)

    def step(self, x: Tensor, label: Tensor, z: list[Tensor], cond: Cond | None = None) -> tuple[Tensor, list[Tensor]]:
        """One token x [B, *E] at label [B], latents z of each layer [B, width] -> out [B, *E], latents after it."""
        net = self.net
        given = [cond["token"][name] for name in net.token] if cond and net.token else []
        code = net.encoder(torch.cat([x.flatten(1), net.level(label), *given], -1))
        out = net.head(torch.cat([z[-1].to(code.dtype), code], -1))
        after, inner = [], code
        for layer, latent in enumerate(z):
            weights = (getattr(net.core, f"{name}_l{layer}") for name in CELL)
            inner = torch.gru_cell(inner, latent.to(inner.dtype), *weights)
            after.append(inner)
        return out.view(x.shape), after

    def forward(self, x: Tensor, label: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        """x [B, T, *E], label [B, T] -> out [B, T, *E], state."""
        z, outs = list(state["z"].unbind(1)), []
        for t in range(x.shape[1]):
            out, z = self.step(x[:, t], label[:, t], z, _token(cond, t))
            outs.append(out)
        return torch.stack(outs, 1), {"z": torch.stack(z, 1).to(state["z"].dtype)}

    def absorb(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> State:
        """The state after tokens x [B, T, *E]; the head runs too, for it is part of the network."""
        return self(x, label, state, cond)[1]


@torch.no_grad()
def double_loop(net: TokenByToken, schedule: Schedule, matrix: Tensor, x: Tensor, cond: Cond | None = None) -> Tensor:
    """DDIM (eta = 0) down the rows of `matrix` [M, T], cell by cell; `net` predicts x0. x: [B, T, *E].

    As in the official code, every cell gathers the coefficients of its batch from the tables, computes the step, and
    keeps the tokens that do not move by a mask.
    """
    tables = [table.to(x.dtype) for table in (schedule.alpha, schedule.sigma, schedule.label)]
    start = list(net.init_state(len(x), cond)["z"].unbind(1))
    shape = (1,) * (x.ndim - 2)
    tokens, given = list(x.unbind(1)), [_token(cond, t) for t in range(x.shape[1])]
    for row, following in pairwise(matrix.tolist()):
        z = start
        for t, (k, s) in enumerate(zip(row, following, strict=True)):
            level, to = (torch.full((len(x),), each, device=x.device) for each in (k, s))
            alpha, sigma, label = (table[level].view(-1, *shape) for table in tables)
            alpha_s, sigma_s = (table[to].view(-1, *shape) for table in tables[:2])
            x0, z = net.step(tokens[t], label.flatten(), z, given[t])
            x0 = x0.to(x.dtype)
            noise = (tokens[t] - alpha * x0) / torch.where(sigma > 0, sigma, torch.ones_like(sigma))
            moves = (to < level).view(-1, *shape)
            tokens[t] = torch.where(moves, alpha_s * x0 + sigma_s * noise, tokens[t])
    return torch.stack(tokens, 1)


def _token(cond: Cond | None, t: int) -> Cond | None:
    if not cond or not cond.get("token"):
        return cond
    return {**cond, "token": {name: value[:, t] for name, value in cond["token"].items()}}
