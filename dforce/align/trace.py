"""A denoising run as a decision process: the state after every step and its log-probability (Black et al. 2023, 4.3).

A trace is a value like a state: tensors only, batch first in every leaf, so that `dforce.core.tree.select` takes rows
of it and `dforce.fit` cuts it into parts. It is recorded from the same `transition` that every sampler uses and
replayed through it under other weights, all steps in one batched forward.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from dforce.align.fingerprint import fingerprint
from dforce.core.denoiser import Cond, Denoiser
from dforce.core.noise import NoiseSource
from dforce.core.sample import sample
from dforce.core.schedule import Schedule
from dforce.core.step import Std
from dforce.core.transition import Euler, Gaussian, coefficients, transition
from dforce.core.tree import State, select
from dforce.guidance.wrapper import innermost

SECOND_ORDER = ("a trace is first order (order=1): a second-order mean depends on the weights through the x0_hat that "
                "is remembered from the step before, so the step would have no density of its own to replay")


class Trace(NamedTuple):
    """S steps of B recorded runs of T tokens. States are float32 (float64 where the run was), log-probs float64."""

    x: Tensor            # [B, S + 1, T, *E] before the first step, and after each
    level: Tensor        # [B, S + 1, T] of the same
    std: Tensor          # [B, S, T] float64: of each step, min_std included; 0 where it is deterministic
    log_prob: Tensor     # [B, S, T] nats, summed over the dimensions that move
    dims: Tensor         # [B, S, T] how many dimensions move
    euler: Tensor        # [B] bool: are the means those of `Euler` steps
    model: Tensor        # [B] fingerprint of the denoiser and schedule that sampled
    mask: Tensor | None  # [B, T, *E] bool, False where a dimension is padding
    state: State         # before the first token; None: the denoiser's own beginning, learnt along
    cond: Cond | None


class Replay(NamedTuple):
    """N steps of a trace under some weights, beside what was recorded of the same steps."""

    log_prob: Tensor  # [B, N, T] under these weights
    old: Tensor       # [B, N, T] as recorded
    dims: Tensor      # [B, N, T]
    kernel: Gaussian  # mean, std [B, N, T, *E] under these weights


@torch.no_grad()
def record(denoiser: Denoiser, schedule: Schedule, matrix: Tensor, x: Tensor, *, state: State = None,
           cond: Cond | None = None, eta: float = 1.0, std: Std | None = None, min_std: float = 0.0, order: int = 1,
           noise: NoiseSource | None = None, mask: Tensor | None = None, autocast: torch.dtype | None = None) -> Trace:
    """Samples down `matrix` from x [B, T, *E], keeping all that `replay` needs. Arguments as in `dforce.sample`.

    Guidance is part of the denoiser, so what sampled is what is replayed. mask: [B, T] or [B, T, *E], padding False.
    autocast: dtype that the network runs in (None: as it is, whatever the caller's context); states and log-probs
    stay float32 or better. The step to level 0 has no density, hence no policy gradient, unless min_std > 0.

    Raises ValueError for order 2, and for a run without any randomness, which has no log-probabilities.
    """
    if order != 1:
        raise ValueError(f"{SECOND_ORDER}; got order={order}")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    valid = None if mask is None else mask.view(*mask.shape, *(1,) * (x.ndim - mask.ndim)).expand_as(x)
    xs, log_probs = [x], []
    levels: list[Tensor] = []
    with running_in(autocast, x.device):
        for step in sample(denoiser, schedule, matrix, x, state=state, cond=cond, eta=eta, order=1, noise=noise,
                           std=std, min_std=min_std):
            log_probs.append(_log_prob(step.kernel, step.x, valid))
            xs.append(step.x)
            levels += [step.to] if levels else [step.level, step.to]
            del step
    level = torch.stack(levels, 1)
    spread, dims, euler = spreads(schedule, level, x, eta=eta, std=std, min_std=min_std, mask=valid)
    model = torch.full((len(x),), fingerprint(denoiser, schedule), dtype=torch.int64, device=x.device)
    return Trace(torch.stack(xs, 1), level, spread, torch.stack(log_probs, 1), dims, euler, model, valid, state, cond)


def spreads(schedule: Schedule, level: Tensor, x: Tensor, *, eta: float, std: Std | None, min_std: float,
            mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """`std`, `dims` and `euler` of a `Trace` of tokens like x [B, T, *E] at levels [B, S + 1, T]; as in `record`."""
    stds, dims = [], []
    for now, to in pairwise(level.unbind(1)):  # after the run: what is small adds up beside the network's activations
        rule = std(now, to) if callable(std) else std
        stds.append(coefficients(schedule, now, to, now, eta=eta, min_std=min_std, std=rule)[2])
        spread = stds[-1].to(x.dtype).view(*now.shape, *(1,) * (x.ndim - 2)).expand_as(x)
        dims.append(Gaussian(x, spread).dims(mask))
    if not any(bool((d > 0).any()) for d in dims):
        raise ValueError(f"no step of this run has a density (eta={eta}, std={std}, min_std={min_std}): a sampler that "
                         "is deterministic has no policy gradient. Pass eta > 0 or std; for the step to level 0, "
                         "min_std > 0")
    euler = torch.full((len(x),), isinstance(rule, Euler), device=x.device)
    return torch.stack(stds, 1), torch.stack(dims, 1), euler


def replay(trace: Trace, denoiser: Denoiser, schedule: Schedule, *, steps: Tensor | None = None,
           rows: int | None = None, checkpoint: bool = False, autocast: torch.dtype | None = None,
           bound: bool = True) -> Replay:
    """The recorded steps under the weights that `denoiser` has now, with gradient.

    steps: which, [N] alike for all runs or [B, N]; None: all. They are folded into the batch, so N B rows go through
    the network at once, the step the slow dimension (a recurrent or causal one does all tokens of a row in one pass,
    each row beginning in the recorded state); `rows` bounds how many, and memory with them: activations are computed
    again in the backward pass, chunk by chunk. checkpoint: so, too, where there is one chunk only. autocast: as in
    `record`; anything else than what sampled is off-policy.
    bound=False admits another model than the one that sampled: a reference.

    Raises ValueError for the trace of another model, and where gradients are wanted but the denoiser cuts them off.
    """
    if bound:
        check_model(trace, denoiser, schedule)
    replayed = _replay(trace, denoiser, schedule, steps, rows, checkpoint, autocast)
    module = innermost(denoiser)
    learns = isinstance(module, nn.Module) and any(parameter.requires_grad for parameter in module.parameters())
    if torch.is_grad_enabled() and learns and not replayed.log_prob.requires_grad:
        raise ValueError(f"no gradient of the log-probabilities reaches the weights: {type(denoiser).__name__} cuts it "
                         "off. guided(...) needs differentiable=True; for a reference, replay under torch.no_grad()")
    return replayed


def _replay(trace: Trace, denoiser: Denoiser, schedule: Schedule, steps: Tensor | None, rows: int | None,
            checkpoint: bool, autocast: torch.dtype | None) -> Replay:
    batch, index = _steps(trace, steps)
    state = denoiser.init_state(len(trace.x), trace.cond) if trace.state is None else trace.state
    parts, euler = [], bool(trace.euler.any())
    # The step is the slow dimension, as the draw is in `fork`: wrappers that hold tensors of B rows know that order.
    size = min(rows or index.numel(), index.numel())
    size -= size % len(index) if size > len(index) else 0
    again = checkpoint or size < index.numel()
    for run, step in zip(*(which.T.flatten().split(size) for which in (batch, index)), strict=True):
        x, level, to, std = trace.x[run, step], trace.level[run, step], trace.level[run, step + 1], trace.std[run, step]
        begin, cond = select((state, trace.cond), run)

        def mean(x: Tensor, level: Tensor, to: Tensor, std: Tensor, state: State, cond: Cond | None) -> Tensor:
            with running_in(autocast, x.device):
                x0, _ = denoiser(x, level, state, cond)
            return transition(schedule, x, x0, level, to, std=Euler(std) if euler else std).mean

        # min_std is in the recorded std, and never in the mean: a step to level 0 has mean x0_hat.
        arguments = (x, level, to, std, begin, cond)
        parts.append(recomputed(mean, *arguments, use_reentrant=False) if again else mean(*arguments))
    flat = torch.cat(parts).unflatten(0, index.T.shape).transpose(0, 1).flatten(0, 1)
    spread = trace.std[batch, index].flatten(0, 1).to(flat.dtype)
    kernel = Gaussian(flat, spread.view(*spread.shape, *(1,) * (flat.ndim - 2)).expand_as(flat))
    valid = None if trace.mask is None else trace.mask[batch.flatten()]
    log_prob = _log_prob(kernel, trace.x[batch, index + 1].flatten(0, 1), valid)
    return Replay(log_prob.view(*index.shape, -1), trace.log_prob[batch, index], trace.dims[batch, index],
                  Gaussian(*(leaf.unflatten(0, index.shape) for leaf in kernel)))


def kl(trace: Trace, policy: Denoiser | Replay, reference: Denoiser | Replay, schedule: Schedule, *,
       steps: Tensor | None = None, rows: int | None = None, autocast: torch.dtype | None = None) -> Tensor:
    """KL(policy || reference) of every step at the recorded states, [B, N, T] nats, 0 where nothing moves.

    Its sum over steps and tokens, in expectation over runs of the policy, is an upper bound of the KL between what the
    two generate (Fan et al. 2023, Lemma 4.2). Either may be a `Replay` of the same `steps` that is there already. A
    reference denoiser gets no gradient, and may be any with these tokens: it is not asked for its fingerprint.
    """
    now = policy if isinstance(policy, Replay) else replay(
        trace, policy, schedule, steps=steps, rows=rows, autocast=autocast)
    with torch.no_grad():
        before = reference if isinstance(reference, Replay) else replay(
            trace, reference, schedule, steps=steps, rows=rows, autocast=autocast, bound=False)
    if now.kernel.mean.shape != before.kernel.mean.shape:
        raise ValueError(f"policy and reference were replayed at different steps: {[*now.kernel.mean.shape]} and "
                         f"{[*before.kernel.mean.shape]}")
    batch, _ = _steps(trace, torch.arange(now.log_prob.shape[1], device=trace.x.device))
    one, other = (Gaussian(*(leaf.flatten(0, 1).double() for leaf in part.kernel)) for part in (now, before))
    valid = None if trace.mask is None else trace.mask[batch.flatten()]
    return one.kl(other, valid).view_as(now.log_prob)


def subsample(trace: Trace, fraction: float, generator: torch.Generator | None = None) -> Tensor:
    """Steps [B, N] to train on, in order, without repetition: a random `fraction` in (0, 1] of those with a density."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction of the steps to train on must lie in (0, 1], got {fraction}")
    moving = (trace.dims > 0).any(2)                                                   # [B, S]
    wanted = max(1, round(fraction * int(moving.sum(1).max())))
    device = generator.device if generator is not None else moving.device
    key = torch.rand(moving.shape, generator=generator, device=device).to(moving.device)
    return (key - 2 * ~moving).topk(wanted, 1).indices.sort(1).values


def _steps(trace: Trace, steps: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run and step of each cell, [B, N] both."""
    size, count = trace.log_prob.shape[:2]
    index = torch.arange(count, device=trace.x.device) if steps is None else steps.to(trace.x.device)
    if index.dtype != torch.int64 or index.ndim not in (1, 2) or (index.ndim == 2 and len(index) != size):
        raise ValueError(f"steps are integers [N] or [B, N] with B = {size}, got {index.dtype} {[*index.shape]}")
    if index.numel() == 0 or index.min() < 0 or index.max() >= count:
        raise ValueError(f"steps must lie in 0..{count - 1} of this trace, got {index.flatten().tolist()[:8]}")
    index = index.expand(size, -1) if index.ndim == 1 else index
    return torch.arange(size, device=index.device)[:, None].expand_as(index), index


def _log_prob(kernel: Gaussian, x: Tensor, mask: Tensor | None) -> Tensor:
    """In float64: the sum over an image's dimensions is of the order of 1e5 nats, and a ratio lives in its digits."""
    return Gaussian(kernel.mean.double(), kernel.std.double()).log_prob(x.double(), mask)


def running_in(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    """The context for a network in `dtype`, or (None) as it is, whatever the caller's context says."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def check_model(trace: Trace, denoiser: Denoiser, schedule: Schedule) -> None:
    """ValueError unless these recorded the trace, under whatever weights."""
    if (trace.model != fingerprint(denoiser, schedule)).any():
        raise ValueError("this trace was recorded by another model (another network, schedule, guidance or its scale): "
                         "its log-probabilities mean nothing here. Replay it with the denoiser that sampled, guidance "
                         "included, or record a new one")
