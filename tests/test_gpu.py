"""A GPU plans, samples and trains as the CPU does. Nothing here runs where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.loss import pyramids
from dforce.core.matrix import pyramid
from dforce.core.noise import Noise
from dforce.core.sample import generate
from dforce.core.schedule import linear
from dforce.data.batch import Batch
from dforce.nets import gru
from dforce.nets.recurrent import RecurrentNet
from dforce.nets.transformer import TransformerNet
from dforce.planning.diffuser import DiffuserPlanner
from dforce.planning.planner import DiffusionPlanner
from dforce.planning.search.best_of_n import BestOfN
from dforce.planning.search.mctd import TreeDiffusionPlanner
from dforce.train.fit import fit
from dforce.train.objectives import ForcingObjective
from tests.small_planner import GOALS, STARTS, small

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = "cuda"
PLANNERS = {"guided": (DiffusionPlanner, {}), "unguided": (DiffusionPlanner, {"scale": 0.0}),
            "MCTG": (DiffusionPlanner, {"draws": 3}), "not causal": (DiffusionPlanner, {"causal": False, "draws": 3}),
            "stochastic": (DiffusionPlanner, {"eta": 1.0, "draws": 2, "lookahead": 3}),
            "best of n": (BestOfN, {"n": 3}),
            "MCTD": (TreeDiffusionPlanner, {"iterations": 2}), "MCTD, MCTG": (TreeDiffusionPlanner, {"draws": 2}),
            "Diffuser": (DiffuserPlanner, {"causal": False, "horizon": 12, "scale": 0.0})}


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def moved(planner, **changes):
    """The planner on the GPU."""
    return planner.with_(denoiser=planner.denoiser.to(GPU).eval(), schedule=planner.schedule.to(GPU),
                         normalizer=planner.normalizer.to(GPU), **changes)


@pytest.mark.parametrize("name", PLANNERS)
def test_plans(name):
    kind, settings = PLANNERS[name]
    wanted = small(kind, **settings)(STARTS, GOALS, 12, np.random.default_rng(3))
    planner = moved(small(kind, **settings))
    plan = planner(STARTS, GOALS, 12, np.random.default_rng(3))
    np.testing.assert_allclose(plan.states, wanted.states, rtol=1e-2, atol=1e-2)
    rough = planner.with_(bf16=True)(STARTS, GOALS, 12, np.random.default_rng(3))
    assert np.isfinite(rough.states).all()


@pytest.mark.parametrize("path", ["wavefront", "constant", "rows", "double_loop"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_all_paths_of_sampling(path, eta):
    torch.manual_seed(0)
    schedule = linear(50)
    denoiser, x = Precond(RecurrentNet((3,), width=16, depth=2), schedule), torch.randn(4, 7, 3)
    wanted = generate(denoiser, schedule, pyramid(schedule.grid(5), 7), x, eta=eta, noise=Noise(1))
    found = generate(denoiser.to(GPU).eval(), schedule, pyramid(schedule.grid(5), 7), x.to(GPU), eta=eta,
                     noise=Noise(1), path=path)
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-3)


def test_cudnn_differentiates_a_frozen_gru_out_of_training():
    torch.manual_seed(0)
    core = torch.nn.GRU(5, 8, 2, batch_first=True).eval().requires_grad_(False)
    code, z = torch.randn(3, 6, 5, requires_grad=True), torch.randn(2, 3, 8)
    wanted, = torch.autograd.grad(core(code, z)[0].square().sum(), code)
    leaf = code.detach().to(GPU).requires_grad_()
    found, = torch.autograd.grad(gru.cudnn(core.to(GPU), leaf, z.to(GPU))[0].square().sum(), leaf)
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-3)


def batch_at(step, bad=()):
    x = torch.randn(8, 6, 3, generator=torch.Generator().manual_seed(step))
    mask = torch.ones(8, 6, dtype=torch.bool)
    return Batch(x * float("nan") if step in bad else x, mask, {}, mask[:, 0])


@pytest.mark.parametrize("kind", [RecurrentNet, TransformerNet])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_skips_what_is_not_finite(kind, precision):
    torch.manual_seed(0)
    schedule = linear(50)
    objective = ForcingObjective(Precond(kind((3,), width=16), schedule), schedule, carry=True,
                                 levels=lambda *given: pyramids(*given, steps=5))
    *_, log = fit(objective, lambda step: batch_at(step, bad=(3,)), lr=1e-3, steps=30, warmup=2, device=GPU,
                  precision=precision, validate=batch_at, validate_every=15)
    assert log.metrics["skipped"] == 1
    assert all(np.isfinite(log.metrics[key]) for key in ("loss", "val_loss", "val_bound"))
    state = log.training.state()
    assert all(value.isfinite().all() for value in state.model.values())
    assert {value.device.type for value in state.optim.values()} == {"cuda"}
