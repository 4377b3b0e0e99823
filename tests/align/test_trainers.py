"""Every trainer on a problem whose optimum is known: one mean to be learnt, reward -(x0 - 1)^2, best at mean 1."""

from __future__ import annotations

import copy

import pytest
import torch

from dforce import fit
from dforce.align import (
    AlignObjective,
    GroupAdvantage,
    OnPolicy,
    PerPromptStats,
    Query,
    Sampler,
    best_against_worst,
    dance,
    direct_reward,
    exponential_weight,
    filtered_weight,
    flow_sde,
    nft,
    policy_gradient,
    preference,
    regression,
    standardised,
    starts,
    stepwise_preference,
)
from dforce.core.loss import min_snr
from dforce.core.schedule import flow, linear
from tests.align_bed import Gaussian

OPTIMUM, BEGIN = 1.0, -0.5


def reward(x, prompts, metadata):
    return -(x[:, 0, 0] - OPTIMUM).square()


def ask(n, generator):
    return Query(["a"] * n)


def world(path="ddpm"):
    schedule = linear(1000) if path == "ddpm" else flow(1000)
    return schedule, Gaussian(schedule, BEGIN, 0.5)


def train(objective, source, *, steps, lr=0.07):
    logs = list(fit(objective, source, lr=lr, steps=steps, warmup=1, weight_decay=0.0, clip=None, ema=None,
                    decay="constant", precision="fp32", device="cpu"))
    return logs[-1].metrics


METHODS = {
    "DDPO-SF": ({}, standardised, policy_gradient(clip_nats=None), 1),
    "DDPO-IS": ({}, PerPromptStats(64, 16), policy_gradient(), 4),
    "DDPO-IS, sequence, half of the steps": ({}, standardised, policy_gradient(reduce="sequence", fraction=0.5), 2),
    "Flow-GRPO": ({"path": "flow", "rule": flow_sde}, GroupAdvantage(), policy_gradient(), 2),
    "DanceGRPO": ({"path": "flow", "rule": dance, "same_start": True}, GroupAdvantage(), policy_gradient(), 2),
    "min_std": ({"eta": 0.0, "min_std": 0.2}, standardised, policy_gradient(), 2),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.quick(3)
def test_policy_gradients_reach_the_optimum(method) -> None:
    how, credit, loss, updates = METHODS[method]
    schedule, model = world(how.get("path", "ddpm"))
    rule = how["rule"](schedule) if "rule" in how else None
    grid = schedule.grid(4, "index" if rule else "log_snr")[:, None]
    sampler = Sampler(model, schedule, grid, (1, 1), std=rule, eta=how.get("eta", 0.0 if rule else 1.0),
                      min_std=how.get("min_std", 0.0))
    source = OnPolicy(sampler, reward, ask, samples=256, group=16, credit=credit, updates=updates,
                      same_start=how.get("same_start", False))
    metrics = train(AlignObjective(model, schedule, loss), source, steps=48)
    assert float(model.mean.detach()) == pytest.approx(OPTIMUM, abs=0.15), metrics
    assert source.epochs[-1]["reward"] > source.epochs[0]["reward"] + 1
    assert source.epochs[-1]["queries"] == 256 * 48 / updates
    assert max(epoch["ratio_error"] for epoch in source.epochs) < 1e-3


REGRESSIONS = {
    "RWR": lambda r, prompts, group: exponential_weight(r, 2.0),
    "filtered": lambda r, prompts, group: filtered_weight(r, 0.25),
}


@pytest.mark.parametrize("method", REGRESSIONS)
def test_regressions_reach_the_optimum(method) -> None:
    schedule, model = world()
    sampler = Sampler(model, schedule, schedule.grid(4)[:, None], (1, 1), order=2, eta=0.0)
    source = OnPolicy(sampler, reward, ask, samples=256, credit=REGRESSIONS[method], updates=2, traces=False)
    train(AlignObjective(model, schedule, regression()), source, steps=50)
    assert float(model.mean.detach()) == pytest.approx(OPTIMUM, abs=0.15)


@pytest.mark.parametrize("method", ["Diffusion-DPO", "D3PO", "DiffusionNFT"])
@pytest.mark.quick(1)
def test_online_methods_with_a_moving_reference_reach_the_optimum(method) -> None:
    schedule, model = world()
    loss = {"Diffusion-DPO": preference(beta=20.0, weight=min_snr()), "D3PO": stepwise_preference(beta=0.5),
            "DiffusionNFT": nft()}[method]
    objective = AlignObjective(model, schedule, loss, reference=copy.deepcopy(model))
    traces = method == "D3PO"
    sampler = Sampler(model, schedule, schedule.grid(4)[:, None], (1, 1), eta=1.0)
    pairs = best_against_worst(4) if method != "DiffusionNFT" else None
    source = OnPolicy(sampler, reward, ask, samples=256, group=16, credit=GroupAdvantage(), traces=traces,
                      prepare=pairs, before=lambda epoch: objective.sync(), updates=2)
    train(objective, source, steps=50, lr=0.06)
    assert float(model.mean.detach()) == pytest.approx(OPTIMUM, abs=0.2)


@pytest.mark.parametrize("last, random", [(1, False), (3, True)])
def test_direct_backpropagation_reaches_the_optimum(last, random) -> None:
    schedule, model = world()
    matrix = schedule.grid(4)[:, None]
    loss = direct_reward(lambda x0, cond: -(x0[:, 0, 0] - OPTIMUM).square(), matrix, last=last, random=random)
    train(AlignObjective(model, schedule, loss), starts(ask, 64, (1, 1)), steps=80, lr=0.05)
    assert float(model.mean.detach()) == pytest.approx(OPTIMUM, abs=0.1)


@pytest.mark.slow
def test_kl_control_holds_the_policy_back() -> None:
    ends = {}
    for weight in (0.0, 0.05, 1.0):
        schedule, model = world()
        sampler = Sampler(model, schedule, schedule.grid(4)[:, None], (1, 1))
        source = OnPolicy(sampler, reward, ask, samples=128, credit=standardised)
        objective = AlignObjective(model, schedule, policy_gradient(kl_weight=weight), reference=copy.deepcopy(model))
        metrics = train(objective, source, steps=10)
        ends[weight] = float(model.mean.detach()), metrics["kl"]
    assert BEGIN < ends[1.0][0] < ends[0.05][0] < ends[0.0][0]
    assert 0 < ends[1.0][1] < ends[0.05][1] < ends[0.0][1]


@pytest.mark.parametrize("method", ["DDPO-SF", "DDPO-IS", "GRPO", "Diffusion-DPO", "D3PO", "DiffusionNFT"])
def test_a_constant_reward_changes_nothing(method) -> None:
    schedule, model = world()
    loss = {"DDPO-SF": policy_gradient(clip_nats=None), "Diffusion-DPO": preference(), "D3PO": stepwise_preference(),
            "DiffusionNFT": nft()}.get(method, policy_gradient())
    prepare = best_against_worst(2) if method in ("Diffusion-DPO", "D3PO") else None
    sampler = Sampler(model, schedule, schedule.grid(4)[:, None], (1, 1))

    def fresh():
        return OnPolicy(sampler, lambda x, prompts, metadata: [0.1] * len(x), ask, samples=32, group=8,
                        credit=GroupAdvantage() if method != "DDPO-IS" else standardised, prepare=prepare)

    source = fresh()
    before, noise = model.mean.detach().clone(), 1e-6 if method == "DiffusionNFT" else 0.0
    objective = AlignObjective(model, schedule, loss, reference=copy.deepcopy(model))
    torch.manual_seed(0)
    for step in range(3):  # by the gradient: Adam makes a step of any size out of rounding
        objective.zero_grad()
        objective(source(step), torch.Generator().manual_seed(step))[0].backward()
        assert float(model.mean.grad.abs().max()) <= noise
    if not noise:
        train(objective, fresh(), steps=3)
        assert torch.equal(model.mean.detach(), before)
