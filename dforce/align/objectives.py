"""The module that `dforce.fit` trains in alignment, and a loss for every family of algorithms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dforce.align import losses
from dforce.align.cells import cells_of, in_parts
from dforce.align.lora import without_adapters
from dforce.align.on_policy import Samples
from dforce.align.preferences import Pairs
from dforce.align.trace import Trace, check_model, kl, replay, subsample
from dforce.core.denoiser import Cond, Denoiser
from dforce.core.loss import Weight, corrupt, min_snr, snr
from dforce.core.schedule import Schedule
from dforce.core.tree import State
from dforce.guidance.wrapper import innermost, module_inside

Result = tuple[Tensor, dict[str, Tensor]]  # the loss, and what to log
Loss = Callable[["AlignObjective", Any, torch.Generator | None], Result]


class AlignObjective(nn.Module):
    """objective(batch, generator) -> (loss, logs), the policy being what sampled, guidance included.

    `denoiser` is the module inside the policy: what has weights, is saved under that name, and what losses on noised
    samples train, unguided. reference: a denoiser that does not learn (a copy of the policy, or `without_adapters`),
    guided as the policy is, no part of the parameters. Dropout and batch statistics of both stay in evaluation mode.
    """

    denoiser: Any

    def __init__(self, policy: Denoiser, schedule: Schedule, loss: Loss, *, reference: Denoiser | None = None):
        super().__init__()
        self.denoiser, self.schedule, self.loss = module_inside(policy), schedule, loss
        self._outside = (policy, reference)  # in a tuple: not registered
        if isinstance(innermost(reference), nn.Module) and innermost(reference) is not self.denoiser:
            innermost(reference).eval()

    @property
    def policy(self) -> Any:
        return self._outside[0]

    @property
    def reference(self) -> Any:
        return self._outside[1]

    def forward(self, batch: Any, generator: torch.Generator | None = None) -> Result:
        loss, logs = self.loss(self, batch, generator)
        return loss, {"loss": loss.detach(), **logs}

    def need_reference(self, why: str) -> Any:
        if self.reference is None:
            raise ValueError(f"{why} needs a reference: AlignObjective(..., reference=copy.deepcopy(policy))")
        return self.reference

    def unguided_reference(self, why: str) -> Any:
        """The network inside the reference: what losses on noised samples compare `denoiser` with."""
        network = innermost(self.need_reference(why))
        return without_adapters(network) if network is self.denoiser else network

    @torch.no_grad()
    def sync(self, keep: float = 0.0) -> None:
        """reference <- keep * reference + (1 - keep) * policy: the old policy of online methods, moved every epoch."""
        reference, now = module_inside(self.need_reference("sync")), self.denoiser.state_dict()
        for name, value in reference.state_dict().items():
            if value.data_ptr() != now[name].data_ptr():  # else it is one of the weights that nothing moves
                value.copy_(torch.lerp(now[name], value, keep) if value.is_floating_point() else now[name])

    def train(self, mode: bool = True) -> AlignObjective:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)):
                module.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> AlignObjective:
        super()._apply(fn, recurse)
        if self.reference is not None and module_inside(self.reference) is not self.denoiser:
            module_inside(self.reference)._apply(fn, recurse)
        return self


def policy_gradient(*, clip_nats: float | None = 1.0, kl_weight: float = 0.0, fraction: float = 1.0,
                    reduce: losses.Reduce = "token", rows: int | None = None, checkpoint: bool = False,
                    autocast: torch.dtype | None = None) -> Loss:
    """DDPO-IS; DDPO-SF where clip_nats is None; DPOK where kl_weight > 0; GRPO by group advantages. Of `Samples`.

    fraction of the steps to train on, checkpoint, autocast: see `subsample` and `replay`. rows: at most so many steps
    of runs are in memory at once, see `in_parts`; the result is the same. With a reference the KL to it is measured in
    any case: logs "kl" (nats of a whole run), "clip_fraction", "log_ratio" (largest, nats).
    """
    def loss(objective: AlignObjective, batch: Samples, generator: torch.Generator | None) -> Result:
        trace = _trace(batch.trace)
        reference = objective.need_reference("kl_weight > 0") if kl_weight > 0 else objective.reference
        check_model(trace, objective.policy, objective.schedule)
        steps = subsample(trace, fraction, generator)

        def part(trace: Trace, advantage: Tensor, steps: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
            now = replay(trace, objective.policy, objective.schedule, steps=steps, checkpoint=checkpoint,
                         autocast=autocast, bound=False)
            nats = torch.zeros_like(now.log_prob)
            if reference is not None:
                with torch.set_grad_enabled(kl_weight > 0 and torch.is_grad_enabled()):
                    nats = kl(trace, now, reference, objective.schedule, steps=steps, autocast=autocast)
            value = losses.dpok(now.log_prob, advantage, nats, now.dims, kl_weight=kl_weight, reduce=reduce,
                                old=None if clip_nats is None else now.old, clip_nats=clip_nats or 1.0)
            return value, [now.dims, now.log_prob, now.old, nats]

        stepwise = batch.advantage.ndim == (3 if reduce == "token" else 2)  # else one for each run
        runs = torch.arange(len(steps), device=steps.device)[:, None]
        if rows is None or steps.numel() <= rows:
            value, cells = part(trace, batch.advantage[runs, steps] if stepwise else batch.advantage, steps)
        else:
            value, cells = in_parts(objective, steps, rows, lambda run, step: part(
                cells_of(trace, run, step), batch.advantage[run, step][:, None] if stepwise else batch.advantage[run]),
                reduce)
        return value, _watch(trace, cells[0], cells[1], cells[2], cells[3], clip_nats, reduce, reference is not None)
    return loss


def regression(*, weight: Weight | None = None) -> Loss:
    """RWR, filtered and supervised fine-tuning of `Samples`, their `advantage` being the weight of each."""
    def loss(objective: AlignObjective, batch: Samples, generator: torch.Generator | None) -> Result:
        level, noise = draw_levels(objective.schedule, batch.x, generator, shared=not objective.policy.causal)
        error = denoising_error(objective.denoiser, objective.schedule, batch.x, level, noise, cond=batch.cond,
                                weight=weight or min_snr())
        return losses.weighted_regression(error, batch.advantage.to(error.dtype)), {"error": error.detach().mean()}
    return loss


def preference(*, beta: float = 5000.0, weight: Weight | None = None) -> Loss:
    """Diffusion-DPO of `Pairs` against the unguided reference. Logs "margin" of errors, "agrees", the share won."""
    def loss(objective: AlignObjective, batch: Pairs, generator: torch.Generator | None) -> Result:
        reference = objective.unguided_reference("Diffusion-DPO")
        level, noise = draw_levels(objective.schedule, batch.win, generator, shared=not objective.policy.causal)

        def error(denoiser: Any, x0: Tensor) -> Tensor:
            return denoising_error(denoiser, objective.schedule, x0, level, noise, cond=batch.cond, weight=weight)

        win, lose = error(objective.denoiser, batch.win), error(objective.denoiser, batch.lose)
        with torch.no_grad():
            before = error(reference, batch.win), error(reference, batch.lose)
        margin = ((lose - before[1]) - (win - before[0])).detach()
        value = losses.diffusion_dpo(win, lose, *before, beta=beta, weight=batch.weight)
        return value, {"margin": margin.mean(), "agrees": (margin > 0).double().mean()}
    return loss


def stepwise_preference(*, beta: float = 0.1, clip_nats: float | None = None, fraction: float = 1.0,
                        reduce: losses.Reduce = "token", rows: int | None = None, checkpoint: bool = False,
                        autocast: torch.dtype | None = None) -> Loss:
    """D3PO of `Pairs` with traces against the reference; with `OnPolicy` and `best_against_worst`, online DPO."""
    def loss(objective: AlignObjective, batch: Pairs, generator: torch.Generator | None) -> Result:
        reference = objective.need_reference("D3PO")
        traces = _trace(batch.win_trace), _trace(batch.lose_trace)
        for trace in traces:
            check_model(trace, objective.policy, objective.schedule)
        steps = subsample(traces[0], fraction, generator)

        def part(traces: Sequence[Trace], weight: Tensor | None,
                 steps: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
            now = [replay(trace, objective.policy, objective.schedule, steps=steps, checkpoint=checkpoint,
                          autocast=autocast, bound=False) for trace in traces]
            with torch.no_grad():
                before = [replay(trace, reference, objective.schedule, steps=steps, autocast=autocast,
                                 bound=False).log_prob for trace in traces]
            dims = torch.minimum(now[0].dims, now[1].dims)
            value = losses.d3po(now[0].log_prob, now[1].log_prob, before[0], before[1], dims, beta=beta,
                                clip_nats=clip_nats, reduce=reduce, weight=weight)
            return value, [dims, now[0].log_prob - before[0], now[1].log_prob - before[1]]

        if rows is None or 2 * steps.numel() <= rows:
            value, cells = part(traces, batch.weight, steps)
        else:  # winner and loser are held together
            value, cells = in_parts(objective, steps, max(rows // 2, 1), lambda run, step: part(
                [cells_of(trace, run, step) for trace in traces],
                batch.weight if batch.weight is None else batch.weight[run]), reduce)
        win, lose = (gain.detach().sum((1, 2)) for gain in cells[1:])
        return value, {"agrees": (win > lose).double().mean()}
    return loss


def nft(*, beta: float = 1.0, limit: float = 1.0, weight: Weight | None = None) -> Loss:
    """DiffusionNFT of `Samples`; the reference is the policy that sampled (before=objective.sync of `OnPolicy`)."""
    def loss(objective: AlignObjective, batch: Samples, generator: torch.Generator | None) -> Result:
        reference = objective.unguided_reference("DiffusionNFT")
        level, noise = draw_levels(objective.schedule, batch.x, generator, shared=not objective.policy.causal)
        noisy = corrupt(objective.schedule, batch.x, level, noise)
        now, _ = objective.denoiser(noisy, level, objective.denoiser.init_state(len(noisy), batch.cond), batch.cond)
        with torch.no_grad():
            old, _ = reference(noisy, level, reference.init_state(len(noisy), batch.cond), batch.cond)
        good = losses.optimality(batch.advantage, limit)
        factor = (weight or min_snr())(objective.schedule.log_snr(level)).to(now.dtype)
        value = losses.diffusion_nft(now, old, batch.x, good, beta=beta, weight=factor)
        return value, {"optimality": good.mean()}
    return loss


def _trace(trace: Trace | None) -> Trace:
    if trace is None:
        raise ValueError("this loss takes log-probabilities: sample with OnPolicy(..., traces=True)")
    return trace


def _watch(trace: Trace, dims: Tensor, log_prob: Tensor, old: Tensor, nats: Tensor, clip_nats: float | None,
           reduce: losses.Reduce, referred: bool) -> dict[str, Tensor]:
    """Numbers to log besides the loss."""
    moving = dims > 0
    logs = {"log_ratio": (log_prob.detach() - old).where(moving, 0.0).abs().max()}
    if clip_nats is not None:
        logs["clip_fraction"] = losses.clip_fraction(log_prob, old, dims, clip_nats=clip_nats, reduce=reduce)
    if referred:  # the mean over the steps that were looked at, for all steps of a run
        per_cell = nats.detach().sum() / moving.sum().clamp(min=1)
        logs["kl"] = per_cell * (trace.dims > 0).sum() / len(trace.x)
    return logs


def draw_levels(schedule: Schedule, x0: Tensor, generator: torch.Generator | None = None, *,
                shared: bool = True) -> tuple[Tensor, Tensor]:
    """Levels [B, T], uniform in 1..K (`shared`: one for all tokens of a run), and noise [B, T, *E]."""
    device = generator.device if generator is not None else x0.device
    shape = (len(x0), 1) if shared else tuple(x0.shape[:2])
    level = torch.randint(1, schedule.levels + 1, shape, generator=generator, device=device)
    noise = torch.randn(x0.shape, generator=generator, device=device, dtype=x0.dtype)
    return level.expand(x0.shape[:2]).to(x0.device), noise.to(x0.device)


def denoising_error(denoiser: Denoiser, schedule: Schedule, x0: Tensor, level: Tensor, noise: Tensor, *,
                    cond: Cond | None = None, state: State = None, mask: Tensor | None = None,
                    weight: Weight | None = None) -> Tensor:
    """Weighted mean-square error of x0_hat for clean x0 [B, T, *E] at `level` [B, T] under `noise`; [B].

    The mean is over tokens and dimensions (of `mask` [B, T, *E]). weight None: the SNR, which makes it the papers'
    error of the noise, |eps - eps_hat|^2 = (alpha / sigma)^2 |x0 - x0_hat|^2; pass `snr(cap)` for other networks, or
    nearly clean tokens drown everything else.
    """
    noisy = corrupt(schedule, x0, level, noise)
    state = denoiser.init_state(len(x0), cond) if state is None else state
    x0_hat, _ = denoiser(noisy, level, state, cond)
    error = (x0_hat - x0).square()
    valid = torch.ones_like(error) if mask is None else mask.expand_as(error).to(error.dtype)
    factor = (weight or snr(math.inf))(schedule.log_snr(level)).to(error.dtype)
    token = (error * valid).flatten(2).sum(2) * factor
    return token.sum(1) / valid.flatten(1).sum(1).clamp(min=1)
