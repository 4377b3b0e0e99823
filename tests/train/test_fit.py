"""fit: equal to a loop written by hand, and to itself after an interruption."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dforce.core.noise import seed_of
from dforce.train.fit import fit, learning_rate
from dforce.train.precision import Precision, choose

PLAIN = {"lr": 1e-2, "warmup": 3, "precision": "fp32", "device": "cpu"}


class Regression(nn.Module):
    """Least squares under drawn input noise, with dropout on request: everything that fit has to make repeatable."""

    def __init__(self, *, noise: float = 0.1, dropout: float = 0.0, width: int = 3):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))
        self.noise = noise
        self.dtypes: set[torch.dtype] = set()

    def forward(self, batch, generator):
        x = batch["x"] + self.noise * torch.randn(batch["x"].shape, generator=generator)
        out = self.net(x)
        self.dtypes.add(out.dtype)
        loss = (out.float() - batch["y"]).square().mean()
        return loss, {"loss": loss.detach(), "largest": x.abs().max()}


def batch_at(step: int, rows: int = 8, width: int = 3) -> dict[str, torch.Tensor]:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(step))
    return {"x": x, "y": x.sum(1, keepdim=True)}


def train(objective, batches=batch_at, **options):
    """The last Log, and the metrics of every step."""
    metrics = []
    for log in fit(objective, batches, **PLAIN | {"steps": 20} | options):
        metrics.append(log.metrics)
    return log, metrics


def assert_same(one, other) -> None:
    assert one.step == other.step
    for part in ("model", "ema", "optim"):
        a, b = getattr(one, part), getattr(other, part)
        assert a.keys() == b.keys() and a
        assert all(torch.equal(a[name], b[name]) for name in a), part


def test_equals_a_loop_written_by_hand():
    ours, by_hand = Regression(), Regression()
    log, metrics = train(ours, weight_decay=0.1, clip=0.5, ema=0.9, seed=5)
    weights = [p for p in by_hand.parameters()]
    matrices, vectors = [p for p in weights if p.ndim == 2], [p for p in weights if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}])
    average = [p.detach().clone() for p in weights]
    for step in range(20):
        loss, _ = by_hand(batch_at(step), torch.Generator().manual_seed(seed_of(5, step, 0, 0)))
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(weights, 0.5)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, lr=1e-2, steps=20, warmup=3)
        optimizer.step()
        decay = min(0.9, (2 + step) / (11 + step))  # the recurrence of the average, after step + 1 steps
        average = [decay * mean + (1 - decay) * p.detach() for mean, p in zip(average, weights, strict=True)]
        assert metrics[step]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        assert metrics[step]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    for name, p in by_hand.named_parameters():
        torch.testing.assert_close(dict(ours.named_parameters())[name], p, rtol=0, atol=2e-6)
    for mean, wanted in zip(log.training.ema.values(), average, strict=True):
        torch.testing.assert_close(mean, wanted, rtol=0, atol=2e-6)


def test_learning_rate():
    rates = [learning_rate(s, lr=2.0, steps=100, warmup=10) for s in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == 2.0 and rates[55] == pytest.approx(1.0)
    assert 0 < rates[99] < 0.002
    assert learning_rate(99, lr=2.0, steps=100, warmup=10, floor=0.5) == pytest.approx(1.0, rel=1e-3)
    assert learning_rate(99, lr=2.0, steps=100, warmup=10, decay="constant") == 2.0


def test_two_parts_equal_the_whole_batch():
    whole, cut = Regression(noise=0), Regression(noise=0)
    train(whole), train(cut, accumulate=2)
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="8 rows cannot be cut into 3"):
        train(Regression(), accumulate=3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_is_bit_exact(accumulate):
    """10 + 10 steps are 20 steps, with dropout, bf16, and a caller who draws numbers in between."""
    options = {"precision": "bf16", "accumulate": accumulate, "validate": batch_at, "validate_every": 5}
    straight, metrics = train(Regression(dropout=0.2), **options)
    for log in fit(Regression(dropout=0.2), batch_at, **PLAIN | options, steps=20):
        torch.rand(3)
        if log.step == 10:
            state = log.training.state()
            break
    resumed, later = train(Regression(dropout=0.2), resume=state, **options)
    assert_same(resumed.training.state(), straight.training.state())
    drop = {"seconds"}
    assert [{k: v for k, v in m.items() if k not in drop} for m in later] == \
           [{k: v for k, v in m.items() if k not in drop} for m in metrics[10:]]


def test_state_is_a_value_and_the_callers_randomness_is_left_alone():
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    steps = fit(Regression(dropout=0.5), batch_at, **PLAIN, steps=5)
    state = next(steps).training.state()
    kept = {name: value.clone() for name, value in state.optim.items()}
    list(steps)
    assert all(torch.equal(kept[name], value) for name, value in state.optim.items())
    assert torch.equal(torch.rand(2), wanted)


def test_a_bad_step_is_skipped_and_counted():
    def poisoned(step):
        batch = batch_at(step)
        return {**batch, "y": batch["y"] * float("nan")} if step in (4, 5, 9) else batch

    before = None
    objective = Regression()
    for log in fit(objective, poisoned, **PLAIN, steps=12):
        state = log.training.state()
        if log.step in (5, 6, 10):
            assert all(torch.equal(before.model[n], v) for n, v in state.model.items())
            assert all(torch.equal(before.optim[n], v) for n, v in state.optim.items())
        before = state
    assert log.metrics["skipped"] == 3 and all(p.isfinite().all() for p in objective.parameters())
    assert before.record["skipped"] == 3


def test_divergence_is_an_error_that_keeps_the_weights():
    objective = Regression()
    with pytest.raises(FloatingPointError, match=r"5 steps in a row were not finite \(step 8: loss nan"):
        train(objective, lambda step: {**batch_at(step), "y": torch.full((8, 1), float("nan") if step > 2 else 0.0)})
    assert all(p.isfinite().all() for p in objective.parameters())


def test_validation_has_fixed_randomness_and_averaged_weights():
    objective = Regression(noise=1.0, dropout=0.5)
    log, metrics = train(objective, lr=1e-12, ema=0.9, validate=lambda i: batch_at(1000 + i), validate_every=10,
                         validate_batches=2)
    assert [i for i, m in enumerate(metrics) if "val_loss" in m] == [9, 19]
    assert metrics[9]["val_loss"] == pytest.approx(metrics[19]["val_loss"], rel=1e-6)  # the weights hardly moved
    assert objective.training and objective.net[2].training
    before = [p.detach().clone() for p in objective.parameters()]
    for average in log.training.ema.values():
        average.zero_()
    with log.training.averaged() as inside:
        assert not inside.training and all((p == 0).all() for p in inside.parameters())
    assert all(torch.equal(p, q) for p, q in zip(before, objective.parameters(), strict=True))


def test_precision():
    chosen = choose("auto", torch.device("cpu"))
    assert chosen.name in ("fp32", "bf16") and chosen.reason and choose("auto", torch.device("cpu")) == chosen
    assert choose("bf16", torch.device("cpu")) == Precision("bf16", "asked for")
    with pytest.raises(ValueError, match="'auto', 'fp32' or 'bf16', got 'half'"):
        choose("half", torch.device("cpu"))
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        objective = Regression()
        log, _ = train(objective, precision=name, steps=1)
        assert objective.dtypes == {dtype} and log.training.state().record["precision"] == name
    log, _ = train(Regression(), precision="auto", steps=1)
    assert log.training.precision == chosen
    other = "fp32" if chosen.name == "bf16" else "bf16"  # a resumed "auto" does not ask the clock again
    state = log.training.state()
    state = state._replace(record={**state.record, "precision": other})
    resumed, _ = train(Regression(), precision="auto", resume=state)
    assert resumed.training.precision.name == other


def test_bad_arguments():
    for options, message in [({"lr": 0}, "lr must be above 0"), ({"ema": 1.0}, "ema must be at least 0 and below 1"),
                             ({"steps": 0}, "steps"), ({"decay": "linear"}, "'cosine' or 'constant'"),
                             ({"accumulate": 0}, "accumulate")]:
        with pytest.raises(ValueError, match=message):
            train(Regression(), **options)
    with pytest.raises(ValueError, match="nothing to train"):
        train(nn.Identity())
    state = train(Regression(), steps=2)[0].training.state()
    with pytest.raises(ValueError, match="had seed 0, got seed=1"):
        train(Regression(), seed=1, resume=state)
    with pytest.raises(ValueError, match=r"another model: it differs in net.0.weight \[8, 3\] instead of \[8, 4\]"):
        train(Regression(width=4), resume=state)
    with pytest.raises(ValueError, match="no optimiser moments"):
        train(Regression(), resume=state._replace(optim={}))
    with pytest.warns(UserWarning, match="not bit for bit"):
        train(Regression(), accumulate=2, resume=state)
