"""The training loop, a generator: it yields after every step, and the caller logs, saves and stops.

What is drawn at step s is a function of (seed, s, stream, part of the batch) alone, so a run goes on bit for bit from
its weights, moments and step number, and the number of processes may change.

Parts: a batch is cut into `accumulate` parts of equal size, and the gradients are averaged: memory of a part, effect of
the whole where the loss is a plain mean over rows. Under torchrun the parts are dealt to the processes.

Carried states: where objective.carry is true, it is called as objective(batch, generator, carried) -> (loss, logs,
carried), with what it gave back for the same rows a step before (None at first): see `ForcingObjective`.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dforce.config import check_numbers
from dforce.core.noise import seed_of
from dforce.core.tree import leaves, map_state
from dforce.train.distributed import Ranks, join, stop_requested
from dforce.train.learning_rate import learning_rate
from dforce.train.precision import choose
from dforce.train.state import Log, Training, TrainingState, call, go_on_from, split_carried, start

BUILDABLE = ("fit",)  # by name, in a configuration

__all__ = ["Log", "Training", "TrainingState", "fit", "learning_rate", "stop_requested"]

TRAIN, VALIDATE = 0, 1  # streams of randomness
PATIENCE = 5            # non-finite steps in a row after which training has diverged


class _Plan(NamedTuple):
    """What stays the same from step to step: the arguments of `fit`; parts: how many a batch is cut into in all."""

    batch_at: Callable[..., Any]
    steps: int
    rate: Callable[[int], float]
    clip: float | None
    parts: int
    shards: int | None
    seed: int
    validate: Callable[[int], Any] | None
    validate_every: int
    validate_batches: int


def fit(objective: nn.Module, batch_at: Callable[..., Any], *, lr: float, steps: int, warmup: int = 500,
        decay: Literal["cosine", "constant"] = "cosine", floor: float = 0.0, weight_decay: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999), clip: float | None = 1.0, ema: float | None = 0.999,
        precision: Literal["auto", "fp32", "bf16"] = "auto", accumulate: int = 1, shards: int | None = None,
        seed: int = 0, resume: TrainingState | None = None, validate: Callable[[int], Any] | None = None,
        validate_every: int = 1000, validate_batches: int = 4,
        device: torch.device | str | None = None) -> Iterator[Log]:
    """Trains `objective` by AdamW and yields a `Log` after each of the steps that remain; the module says more.

    objective: (batch, generator) -> loss [], logs {name: []}; draws from the generator, seeded anew for every step.
    batch_at: step -> batch of step 0, 1, ...: any nest of tensors, batch dimension first.
    lr, steps, warmup, decay, floor: of `learning_rate`. clip: largest norm of the gradient, None for any.
    ema: decay of the averaged weights, None for none. precision: of the networks; "auto" asks the hardware.
    accumulate: parts that a batch is cut into. shards: parts that batch_at(step, shards=(lo, hi)) can be asked for.
    validate: i -> held-out batch i of `validate_batches`, looked at with the averaged weights every `validate_every`
    steps and at the end, always under the same noise.
    resume: `log.training.state()` of the run to go on with. device: None takes the accelerator if there is one.

    A step whose loss or gradient is not finite leaves weights and moments as they were; FloatingPointError after 5 of
    them in a row. ValueError for arguments out of range and for a `resume` that belongs to another run.
    """
    check_numbers({"lr": lr, "steps": steps, "warmup": warmup, "floor": floor, "weight_decay": weight_decay,
                   "betas": betas, "clip": clip, "ema": ema, "accumulate": accumulate, "seed": seed,
                   "validate_every": validate_every, "validate_batches": validate_batches})
    if decay not in ("cosine", "constant"):
        raise ValueError(f"decay must be 'cosine' or 'constant', got {decay!r}")
    ranks = join(device)
    parts = ranks.world if accumulate == 1 else accumulate
    ranks.deal(parts, "accumulate")
    if resume is not None and precision == "auto":  # a clock decides "auto": going on exactly means not asking again
        precision = resume.record.get("precision", precision)
    training = _begin(objective, ranks, resume, precision, {"seed": seed, "parts": parts}, weight_decay=weight_decay,
                      betas=betas, ema=ema)
    rate = partial(learning_rate, lr=lr, steps=steps, warmup=warmup, decay=decay, floor=floor)
    return _run(training, _Plan(batch_at, steps, rate, clip, parts, shards, seed, validate, validate_every,
                                max(validate_batches, ranks.world)), ranks)


def _begin(objective: nn.Module, ranks: Ranks, resume: TrainingState | None, precision: Literal["auto", "fp32", "bf16"],
           record: dict[str, Any], **optimizer: Any) -> Training:
    """The live state of step 0, or of the step of `resume`, whose settings in `record` must be the same."""
    chosen = choose(precision, ranks.device)
    record = {**record, "precision": chosen.name}
    training = start(objective, precision=chosen, record=record, device=ranks.device, **optimizer)
    if resume is not None:
        _check_resume(record, resume)
        go_on_from(training, resume)
        training.carried = training.carried and [leaf[slice(*ranks.deal(len(leaf), "rows of a batch"))].to(ranks.device)
                                                 for leaf in training.carried]
    return training


def _run(training: Training, plan: _Plan, ranks: Ranks) -> Iterator[Log]:
    forward = ranks.wrap(training.objective)
    training.objective.train()
    for step in range(training.step, plan.steps):
        begin = time.perf_counter()
        rate = plan.rate(step)
        measured = _step(training, plan, ranks, forward, step, rate)
        _check_convergence(training, plan, ranks, measured, rate)
        known = {"lr": rate, "seconds": time.perf_counter() - begin}
        if plan.validate is not None and (training.step % plan.validate_every == 0 or training.step == plan.steps):
            known |= _validation(training, plan.validate, plan, ranks)
        yield Log(training.step, plan.steps, training, measured, known)


def _step(training: Training, plan: _Plan, ranks: Ranks, forward: nn.Module, step: int,
          rate: float) -> dict[str, Tensor]:
    """Does one step of the optimiser and of the average; returns what it measured, a mean over all processes."""
    optimizer, parameters = training.optimizer, list(training.parameters.values())
    optimizer.zero_grad(set_to_none=True)
    measured = _gradients(training, plan, ranks, forward, step)
    if plan.clip is None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    else:
        norm = torch.nn.utils.clip_grad_norm_(parameters, plan.clip)
    bad = (~(torch.isfinite(measured["loss"]) & torch.isfinite(norm))).float()
    for group in optimizer.param_groups:
        group["lr"] = rate
    # The fused kernel then leaves weights and moments alone, without our asking the device (GradScaler does the same).
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    optimizer.step()
    training.skipped, training.failing = training.skipped + bad, (training.failing + 1) * bad
    training.step = step + 1
    training.update_average()
    return measured | {"grad_norm": norm, "skipped": training.skipped}


def _gradients(training: Training, plan: _Plan, ranks: Ranks, forward: nn.Module, step: int) -> dict[str, Tensor]:
    """Accumulates the mean gradient of this process's parts; returns loss and logs, averaged over all processes."""
    lo, hi = ranks.deal(plan.parts, "accumulate")
    sums: dict[str, Tensor] = {}
    before, after = split_carried(training.carried, hi - lo), []
    for part, batch in zip(range(lo, hi), _local_parts(plan, ranks, step), strict=True):
        # DDP averages over the processes once, at the last part.
        alone = nullcontext() if ranks.world == 1 or part == hi - 1 else forward.no_sync()  # type: ignore[operator]
        with alone, _drawn(plan.seed, step, TRAIN, part, ranks.device) as draw:
            with training.precision.autocast(ranks.device):
                loss, logs, carried = call(training.objective, forward, batch, draw, before[part - lo])
            (loss / (hi - lo)).backward()
        after.append(carried)
        for name, value in {**logs, "loss": loss}.items():
            sums[name] = sums.get(name, 0) + value.detach().float() / (hi - lo)
    training.carried = [torch.cat(rows) for rows in zip(*after, strict=True)] or None
    return dict(zip(sums, ranks.mean(torch.stack(list(sums.values()))), strict=True))


def _local_parts(plan: _Plan, ranks: Ranks, step: int) -> Iterator[Any]:
    """Yields the parts of the batch of `step` that belong to this process, on its device."""
    if plan.shards is not None and ranks.world > 1:
        batch, (lo, hi) = plan.batch_at(step, shards=ranks.deal(plan.shards, "shards")), (0, plan.parts // ranks.world)
        count = hi
    else:
        batch, (lo, hi), count = plan.batch_at(step), ranks.deal(plan.parts, "accumulate"), plan.parts
    rows = len(leaves(batch)[0])
    if rows % count:
        raise ValueError(f"{rows} rows cannot be cut into {count} equal parts; change the batch size or accumulate")
    size = rows // count
    for part in range(lo, hi):
        rows_of_part = slice(part * size, (part + 1) * size)
        yield map_state(lambda leaf, rows=rows_of_part: leaf[rows].to(ranks.device, non_blocking=True), batch)


@contextmanager
def _drawn(seed: int, step: int, stream: int, part: int, device: torch.device) -> Iterator[torch.Generator]:
    """Yields a generator for one call of the objective; inside, dropout too draws by the counters and not by chance."""
    number = seed_of(seed, step, stream, part)
    # Not torch.manual_seed and fork_rng: without a GPU each call formats a stack trace to queue a seed for one.
    unasked = [torch.default_generator]
    if device.type == "cuda":
        unasked.append(torch.cuda.default_generators[device.index])
    before = [generator.get_state() for generator in unasked]
    for generator in unasked:
        generator.manual_seed(number + 1)  # streams of their own: dropout must not follow the noise
    try:
        yield torch.Generator(device).manual_seed(number)
    finally:
        for generator, state in zip(unasked, before, strict=True):
            generator.set_state(state)


@torch.no_grad()
def _validation(training: Training, validate: Callable[[int], Any], plan: _Plan, ranks: Ranks) -> dict[str, float]:
    """Mean loss and logs over the held-out batches, with averaged weights and the same draws every time."""
    sums: dict[str, Tensor] = {}
    carry, carried = getattr(training.objective, "carry", False), None
    first, every = (0, 1) if carry else (ranks.rank, ranks.world)  # what is carried goes through all batches in turn
    with training.averaged() as objective:
        for index in range(first, plan.validate_batches, every):
            batch = map_state(lambda leaf: leaf.to(ranks.device), validate(index))
            with _drawn(plan.seed, 0, VALIDATE, index, ranks.device) as draw, training.precision.autocast(ranks.device):
                loss, logs, carried = call(objective, objective, batch, draw, carried)
            for name, value in {**logs, "loss": loss}.items():
                sums[f"val_{name}"] = sums.get(f"val_{name}", 0) + value.float() * every / plan.validate_batches
    return dict(zip(sums, ranks.mean(torch.stack(list(sums.values()))).tolist(), strict=True))


def _check_resume(record: dict[str, Any], resume: TrainingState) -> None:
    before = resume.record
    if before.get("seed", record["seed"]) != record["seed"]:
        raise ValueError(f"the run to resume had seed {before['seed']}, got seed={record['seed']}: its batches and "
                         "noise would change in mid-run; pass the same seed")
    for name in ("parts", "precision"):
        if before.get(name, record[name]) != record[name]:
            warnings.warn(f"resuming with {name} = {record[name]} instead of {before[name]}: the run goes on, "
                          "but not bit for bit as it would have", stacklevel=4)


def _check_convergence(training: Training, plan: _Plan, ranks: Ranks, measured: dict[str, Tensor], rate: float) -> None:
    """FloatingPointError after PATIENCE bad steps in a row, or where no step to the end was good, or weights are not.

    Only every tenth step on a GPU, and at the end: to look is to wait for it.
    """
    end = training.step == plan.steps
    if not (end or ranks.device.type == "cpu" or training.step % 10 == 0):
        return
    failing = int(training.failing)
    bad = [name for name, value in training.parameters.items() if not value.isfinite().all()] if end else []
    if not bad and failing < (min(PATIENCE, training.step) if end else PATIENCE):
        return
    seen = f"loss {float(measured['loss']):.3g}, gradient norm {float(measured['grad_norm']):.3g}, lr {rate:.3g}"
    what = f"the weights {bad[0]} are not finite" if bad else f"{failing} steps in a row were not finite"
    raise FloatingPointError(
        f"training diverged: {what} (step {training.step}: {seen}). The last checkpoint is from before; lower lr, "
        "lengthen warmup or clip harder. If the first steps already fail, look at the data and the objective")
