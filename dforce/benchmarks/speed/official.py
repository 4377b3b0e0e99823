"""The structure of the official code, in words of our own: the whole network once a token, the sampler once a cell.

In training and in sampling, which evaluates every token in every row of the schedule matrix, pure noise and finished
ones included. The weights are those of a `RecurrentNet`, so that both compute the same numbers.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dforce.core.denoiser import Cond
from dforce.core.schedule import Schedule
from dforce.data.batch import Batch
from dforce.nets.recurrent import RecurrentNet, State

CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of a layer of nn.GRU, in the order that a cell takes them
LAYERS = 4           # residual blocks before the cell, the last of them a linear map; as many after it
CLIP, DECAY = 5.0, 0.9
NOISE = 6.0          # noise is clamped to +- so many standard deviations


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
    """DDIM (eta = 0) down the rows of `matrix` [M, T], cell by cell, each with its own coefficients. x: [B, T, *E]."""
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


class OfficialBlock(nn.Module):
    """GELU of a shortcut plus two linear maps with a GELU between them."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))
        self.short = nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs)
        self.out = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.short(x) + self.inner(x))


def _blocks(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(OfficialBlock(inputs, hidden), *(OfficialBlock(hidden, hidden) for _ in range(LAYERS - 2)),
                         nn.Linear(hidden, outputs))


class OfficialObjective(nn.Module):
    """objective(batch, generator) -> (loss, logs), of tokens [B, T, numbers]; defaults: the official maze planner's."""

    def __init__(self, schedule: Schedule, numbers: int, *, latent: int = 128, hidden: int = 512, features: int = 16):
        super().__init__()
        self.schedule, self.latent, self.features = schedule, latent, features
        self.level = nn.Sequential(nn.Linear(features, features), nn.GELU(), nn.Linear(features, features))
        self.before = _blocks(numbers + latent + features, hidden, latent)
        self.cell = nn.GRUCell(latent, latent)
        self.after = _blocks(latent, hidden, latent)
        self.read = nn.Linear(latent, numbers)
        self.register_buffer("alpha", schedule.alpha.float())
        self.register_buffer("sigma", schedule.sigma.float())
        self.register_buffer("snr", schedule.log_snr(torch.arange(1, schedule.levels + 1)).exp().float())

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        z = batch.x.new_zeros(len(batch.x), self.latent)
        fused, losses = None, []
        for x in batch.x.unbind(1):
            z, loss, fused = self._token(x, z, fused)
            losses.append(loss)
        mean = torch.stack(losses).mean()
        return mean, {"loss": mean.detach()}

    def _token(self, x: Tensor, z: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, numbers], latent, the running SNR of the past -> latent after x, loss [B, numbers], SNR after x."""
        level = torch.randint(1, self.schedule.levels + 1, (len(x),), device=x.device)
        noise = torch.randn_like(x).clamp(-NOISE, NOISE)
        alpha, sigma = self.alpha[level][:, None], self.sigma[level][:, None]  # type: ignore[index]
        noisy = alpha * x + sigma * noise
        z = self._latent(noisy, level, z)
        x0 = self.read(z)
        _ = (noisy / alpha - x0) / (sigma / alpha)  # the noise estimate that their model always returns
        share = self.snr[level - 1] / CLIP  # type: ignore[index]
        clipped = share.clamp(max=1.0)
        weight, after = clipped, clipped
        if past is not None:
            after = past * DECAY + clipped * (1 - DECAY)
            weight = 1 - (1 - past * DECAY) * (1 - clipped)
            _ = 1 - (1 - past * DECAY) * (1 - share)
        error = nn.functional.mse_loss(x0, x, reduction="none")
        return z, error * (weight * CLIP)[:, None], after

    def _latent(self, noisy: Tensor, level: Tensor, z: Tensor) -> Tensor:
        half = self.features // 2
        rates = torch.exp(torch.arange(half, device=noisy.device) * (-math.log(10000) / (half - 1)))
        angles = level[:, None] * rates[None]
        level_code = self.level(torch.cat([angles.sin(), angles.cos()], -1))
        inner = self.before(torch.cat([noisy, z, level_code], -1))
        return self.after(self.cell(inner, z))
