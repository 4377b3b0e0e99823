"""The evidence lower bound at validation: what is logged, by whom, and that nothing else changes for it."""

from __future__ import annotations

import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.elbo import held_out_bound
from dforce.core.loss import v_weight
from dforce.core.noise import Noise, seed_of
from dforce.core.schedule import linear
from dforce.data import Batch
from dforce.nets.recurrent import RecurrentNet
from dforce.nets.transformer import TransformerNet
from dforce.report.plots.curves import loss_curve
from dforce.train.fit import VALIDATE, fit
from dforce.train.objectives import BOUND_LEVELS, ForcingObjective
from tests.gaussian_bed import NonCausal, ar1

S = linear(50)
OPTIONS = {"lr": 3e-3, "steps": 60, "warmup": 5, "ema": None, "precision": "fp32", "device": "cpu"}


def batch_at(step: int, *, seed: int = 0) -> Batch:
    x = ar1(64, 8, torch.Generator().manual_seed(10_000 * seed + step))
    return Batch(x, torch.ones(x.shape[:2], dtype=torch.bool), {}, torch.ones(len(x), dtype=torch.bool))


def held_out(index: int) -> Batch:
    """The last tokens of the rows are padding."""
    batch = batch_at(index, seed=1)
    return batch._replace(mask=torch.arange(8).expand(64, -1) < 6)


def objective(kind: type = RecurrentNet, *, carry: bool = False, **net) -> ForcingObjective:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ForcingObjective(Precond(kind((1,), width=16, **net), S), S, weight=v_weight(100.0), carry=carry)


def direct(model: ForcingObjective, index: int, state=None) -> torch.Tensor:
    """The bound that `fit` must have logged for held-out batch `index`, whose noise its seed numbers."""
    noise = Noise(seed_of(0, 0, VALIDATE, index))
    return held_out_bound(model.denoiser, S, held_out(index), rows=4, levels=BOUND_LEVELS, state=state, noise=noise)


@pytest.mark.slow
def test_fit_logs_the_bound_and_training_raises_it():
    model = objective()
    before = torch.stack([direct(model, i) for i in range(2)]).mean()
    logs = list(fit(model, batch_at, validate=held_out, validate_every=30, validate_batches=2, **OPTIONS))
    assert ["val_bound" in log.metrics for log in logs] == [step in (30, 60) for step in range(1, 61)]
    assert not any("bound" in log.metrics for log in logs)
    after = torch.stack([direct(model, i) for i in range(2)]).mean()
    assert logs[-1].metrics["val_bound"] == pytest.approx(float(after), rel=1e-6)
    assert float(after) > float(before) + 100  # measured -606 and -23 nats a token; the exact denoiser has -2.3


def test_the_bound_changes_nothing_else():
    model, batch = objective().eval(), held_out(0)
    drawn = torch.Generator().manual_seed(3)
    loss, logs = model(batch, drawn)
    assert not any(value.requires_grad for value in logs.values())
    assert [name for name in logs if not name.startswith("error_")] == ["loss", "bound"]
    rest = torch.Generator().manual_seed(3)
    assert model.train()(batch, rest)[0] == loss and torch.equal(drawn.get_state(), rest.get_state())
    again = model.eval()(batch, torch.Generator().manual_seed(3))[1]["bound"]
    assert again == logs["bound"] != model(batch, torch.Generator().manual_seed(4))[1]["bound"]


def test_padding_does_not_count():
    model, batch = objective().eval(), held_out(0)
    spoilt = batch._replace(x=torch.where(batch.mask[..., None], batch.x, 99.0))
    bounds = [model(each, torch.Generator().manual_seed(0))[1]["bound"] for each in (batch, spoilt)]
    assert bounds[0] == bounds[1]
    whole = held_out_bound(model.denoiser, S, batch._replace(mask=None), rows=4, noise=Noise(1))
    ones = held_out_bound(model.denoiser, S, batch_at(0, seed=1), rows=4, noise=Noise(1))
    assert whole == ones


def test_bf16_networks_are_judged_in_float32():
    model, batch = objective().eval(), held_out(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, logs = model(batch, torch.Generator().manual_seed(0))
    plain = model(batch, torch.Generator().manual_seed(0))
    assert logs["bound"] == plain[1]["bound"] and loss != plain[0]


def test_a_carried_state_is_where_the_bound_begins():
    model, batch = objective(carry=True).eval(), held_out(0)
    batch = batch._replace(first=torch.arange(64) % 2 == 0)
    *_, carried = model(batch, torch.Generator().manual_seed(0))
    _, logs, _ = model(batch, torch.Generator().manual_seed(5), carried)
    fresh = model.denoiser.init_state(64)["z"]
    state = {"z": torch.where(batch.first[:, None, None], fresh, carried[0])}
    wanted = held_out_bound(model.denoiser, S, batch, rows=4, levels=BOUND_LEVELS, state=state, noise=Noise(5))
    assert logs["bound"] == wanted
    assert wanted != held_out_bound(model.denoiser, S, batch, rows=4, levels=BOUND_LEVELS, noise=Noise(5))


def test_who_has_none():
    """Without causality only whole sequences have a bound, another one; with a single level there is no transition."""
    transformer = objective(TransformerNet, depth=1, heads=2, causal=False)
    for model in (transformer, ForcingObjective(NonCausal(S, 8), S)):
        assert "bound" not in model.eval()(held_out(0), torch.Generator().manual_seed(0))[1]
    one = linear(1)
    model = ForcingObjective(Precond(RecurrentNet((1,), width=8), one), one).eval()
    assert torch.isfinite(model(held_out(0), torch.Generator().manual_seed(0))[1]["bound"])


def test_the_curve_has_a_panel_for_it():
    assert len(loss_curve([0, 1], [2.0, 1.0], [1], [1.0]).axes) == 1
    losses, bound = loss_curve([0, 1], [2.0, 1.0], [0, 1], [2.0, 1.0], [-9000.0, -5.0]).axes
    assert bound.lines[0].get_ydata().tolist() == [-9000.0, -5.0] and bound.get_yscale() == "symlog"
    assert losses.get_xlabel() == "" and bound.get_xlabel() == "training step"
    assert loss_curve([0, 1], [2.0, 1.0], [0, 1], [2.0, 1.0], [None, -5.0]).axes[1].get_yscale() == "linear"
