"""Laws of alignment that its other tests do not state: own samples teach nothing new, constants move nothing anywhere,
chosen samples are learnt, a failed reward leaves the last good checkpoint."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from dforce import fit
from dforce.align import (
    AlignObjective,
    OnPolicy,
    Pairs,
    Preferences,
    Query,
    RewardError,
    Sampler,
    Samples,
    Weighted,
    backward_guided,
    best_of_n,
    classifier_guided,
    demon,
    direct_reward,
    exponential_weight,
    filtered_weight,
    policy_gradient,
    preference,
    record,
    regression,
    replay,
    standardised,
    starts,
    steer,
)
from dforce.core.loss import min_snr
from dforce.core.matrix import full_sequence
from dforce.core.noise import Noise
from dforce.core.sample import sample
from dforce.core.schedule import cosine, flow, linear
from dforce.core.tree import select
from dforce.guidance.energy import guided
from dforce.train.checkpoint import find, load, load_state, save, verify
from tests.align_bed import Gaussian, networks

HOW = {"warmup": 1, "weight_decay": 0.0, "clip": None, "ema": None, "decay": "constant", "precision": "fp32",
       "device": "cpu"}


def ask(n, generator):
    return Query(["a"] * n)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chosen(x, weight=None):
    """Samples whose advantage is the weight of each, as `regression` takes them."""
    weight = torch.ones(len(x), dtype=torch.float64) if weight is None else weight
    return Samples(x, None, weight, weight, torch.zeros(len(x), dtype=torch.long), None)


# --------------------------------------------------------------------------------------- chosen samples, fixed pairs

def test_supervised_fine_tuning_reaches_the_mean_of_the_chosen_samples() -> None:
    """x ~ N(1, 0.5^2): the optimum of the one mean that is learnt is the samples' own."""
    schedule = linear(1000)
    model, x = Gaussian(schedule, -0.5, 0.5), 1 + 0.5 * drawn(512, 1, 1)
    source = lambda step: select(chosen(x), torch.arange(512).roll(64 * step)[:256])  # noqa: E731
    list(fit(AlignObjective(model, schedule, regression()), source, lr=0.07, steps=60, **HOW))
    assert float(model.mean.detach()) == pytest.approx(float(x.mean()), abs=0.1)


def test_weights_choose_which_samples_are_learnt() -> None:
    """Half at 1, half at -2, the latter of weight 0: they are as if they were not there."""
    schedule = linear(1000)
    model, near = Gaussian(schedule, -0.5, 0.5), 1 + 0.5 * drawn(256, 1, 1)
    x = torch.cat([near, -2 + 0.5 * drawn(256, 1, 1, seed=1)])
    weight = filtered_weight(torch.cat([torch.ones(256), torch.zeros(256)]).double(), 0.5)
    assert weight.tolist() == [2.0] * 256 + [0.0] * 256
    list(fit(AlignObjective(model, schedule, regression()), lambda step: chosen(x, weight), lr=0.07, steps=60, **HOW))
    assert float(model.mean.detach()) == pytest.approx(float(near.mean()), abs=0.1)


def test_fixed_pairs_are_learnt_against_the_frozen_reference() -> None:
    """Diffusion-DPO of pairs N(1, .5^2) over N(-1, .5^2) from the middle: the preferred side is approached."""
    schedule = linear(1000)
    model = Gaussian(schedule, 0.0, 0.5)
    win, lose = 1 + 0.5 * drawn(256, 1, 1), -1 + 0.5 * drawn(256, 1, 1, seed=1)
    objective = AlignObjective(model, schedule, preference(beta=20.0, weight=min_snr()),
                               reference=copy.deepcopy(model))
    logs = list(fit(objective, Preferences(Pairs(win, lose, None, torch.ones(256)), batch=128), lr=0.03, steps=30,
                    **HOW))
    assert 0.3 < float(model.mean.detach()) and logs[-1].metrics["agrees"] > 0.8
    assert float(objective.reference.mean.detach()) == 0


def test_dpok_stops_where_reward_and_kl_balance() -> None:
    """More weight on the KL ends nearer to the reference; the order is that of the weights, on the same noise."""
    ends = []
    for weight in (0.0, 0.05, 5.0):
        schedule = linear(1000)
        model = Gaussian(schedule, -0.5, 0.5)
        sampler = Sampler(model, schedule, schedule.grid(4)[:, None], (1, 1))
        source = OnPolicy(sampler, lambda x, p, m: -(x[:, 0, 0] - 1).square(), ask, samples=128, credit=standardised)
        objective = AlignObjective(model, schedule, policy_gradient(kl_weight=weight), reference=copy.deepcopy(model))
        list(fit(objective, source, lr=0.07, steps=16, **HOW))
        ends.append(float(model.mean.detach()))
    assert ends[2] < ends[1] < ends[0] and ends[2] == pytest.approx(-0.5, abs=0.1)


# ------------------------------------------------------------------------------------------- own samples, constants

@pytest.mark.parametrize("weight", [lambda r: exponential_weight(r, 3.0), lambda r: filtered_weight(r, 0.1)])
def test_a_constant_reward_makes_regression_learn_its_own_samples_which_it_knows(weight) -> None:
    """Weights are exactly 1, and at the model's own law the expected gradient of the denoising loss is zero."""
    constant = torch.full((20_000,), 0.1, dtype=torch.float64)
    weights = weight(constant)
    assert torch.allclose(weights, torch.ones_like(weights), atol=1e-12)
    schedule = linear(1000)
    grads = {}
    for shift in (0.0, 0.5):  # shift: samples of another law, for scale
        model = Gaussian(schedule, -0.5, 0.5)
        x = -0.5 + shift + 0.5 * drawn(20_000, 1, 1)
        loss, _ = AlignObjective(model, schedule, regression())(chosen(x, weights), torch.Generator().manual_seed(1))
        grads[shift] = float(torch.autograd.grad(loss, model.mean)[0].abs())
    assert grads[0.0] < 0.03 * grads[0.5]


def test_dpok_and_backpropagation_of_a_constant_reward_change_nothing() -> None:
    schedule = linear(1000)
    model = Gaussian(schedule, -0.5, 0.5)
    matrix = schedule.grid(4)[:, None]
    source = OnPolicy(Sampler(model, schedule, matrix, (1, 1)), lambda x, p, m: [0.1] * len(x), ask, samples=32,
                      credit=standardised)
    dpok = AlignObjective(model, schedule, policy_gradient(kl_weight=0.5), reference=copy.deepcopy(model))
    draft = AlignObjective(model, schedule, direct_reward(lambda x0, cond: 0.1 + 0 * x0.sum((1, 2)), matrix, last=2))
    for objective, batches in ((dpok, source), (draft, starts(ask, 16, (1, 1)))):
        list(fit(objective, batches, lr=0.1, steps=3, **HOW))
        assert float(model.mean.detach()) == -0.5


def end(model, schedule, matrix, x, **how):
    *_, last = sample(model, schedule, matrix, x, noise=Noise(1), **how)
    return last.x


def test_at_test_time_a_constant_reward_is_plain_sampling() -> None:
    schedule = cosine(100)
    model, matrix, x = networks(schedule)["image"], full_sequence(schedule.grid(5), 2), drawn(3, 2, 3)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    how = {"eta": 1.0, "order": 1}

    def flat(x0):
        return torch.full((len(x0),), 0.1)

    def smooth(x0):
        return 0.1 + 0 * x0.sum((1, 2))

    plain = end(model, schedule, matrix, x, **how)
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(best_of_n(model, schedule, matrix, x, 4, flat, noise=Noise(1), **how).x, plain, **close)
    assert torch.equal(end(model, schedule, matrix, x, draw=demon(model, schedule, flat, 4), **how), plain)
    found = steer(model, schedule, matrix, x, 3, flat, lam=7.0, noise=Noise(1))
    torch.testing.assert_close(found.x[0], plain, **close)
    for wrapped in (guided(model, schedule, smooth, 3.0), backward_guided(model, smooth, updates=2, rate=0.5),
                    classifier_guided(model, schedule, lambda x, level: smooth(x), 3.0)):
        torch.testing.assert_close(end(wrapped, schedule, matrix, x, **how), plain, **close)


# ------------------------------------------------------------------------------------------------------ the last step

@pytest.mark.parametrize("schedule", [linear(1000), flow(1000)])
def test_the_last_step_learns_where_sampling_stops_at_level_one(schedule) -> None:
    """To level 0 the last step has no density and so no gradient; where rows end at level 1, every step has."""
    down = schedule.grid(4)
    assert down[-2:].tolist() == [1, 0]
    grads = {}
    for rows, moving in ((down, [True] * 3 + [False]), (down[:-1], [True] * 3)):
        model = Gaussian(schedule, -0.5, 0.5)
        trace = record(model, schedule, rows[:, None], drawn(64, 1, 1), noise=Noise(3))
        now = replay(trace, model, schedule)
        assert [bool(step.all()) for step in (now.dims > 0).unbind(1)] == moving
        last = now.log_prob[:, -1].sum()
        grads[len(rows)] = float(torch.autograd.grad(last, model.mean)[0].abs())
    assert grads[5] == 0 and grads[4] > 0


# ------------------------------------------------------------------------------------------- rewards that fail

CONFIG = {"net": {"_target_": "dforce.nets.transformer.TransformerNet", "width": 16, "depth": 1, "heads": 2,
                  "context": 2}, "schedule": {"_target_": "dforce.core.schedule.cosine", "levels": 100}, "predict": "v"}


def small():
    from dforce.train.checkpoint import build_denoiser
    torch.manual_seed(0)
    return build_denoiser(CONFIG, {"event_shape": [3]})


@pytest.mark.parametrize("wrong", [
    lambda x: torch.full((len(x),), torch.nan), lambda x: x.mean(), lambda x: 1 / 0,
    lambda x: Weighted([lambda x, p, m: x.mean((1, 2)), lambda x, p, m: x.sum((1, 2)) / 0])(x, ["a"] * len(x))])
def test_a_reward_that_fails_in_mid_run_leaves_the_last_checkpoint_to_go_on_from(wrong, tmp_path) -> None:
    """And a run that goes on from it with a working reward ends as one that was never disturbed."""
    def tune(reward, folder, resume=None):
        model = small()
        source = OnPolicy(Sampler(model, model.schedule, model.schedule.grid(4)[:, None], (1, 3)), reward, ask,
                          samples=8, credit=standardised, updates=2, checked=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for log in fit(AlignObjective(model, model.schedule, policy_gradient()), source, lr=1e-2, steps=8,
                           resume=resume, **{**HOW, "warmup": 0}):
                if log.step % 2 == 0:  # at the end of an epoch, where a run can be gone on with
                    save(folder / "checkpoints" / f"step_{log.step:08d}", log.training.state(), config=CONFIG,
                         layout={"event_shape": [3]})
        return model

    calls = []

    def fails_in_epoch_2(x, prompts, metadata):
        calls.append(len(x))
        return wrong(x) if len(calls) == 3 else x.mean((1, 2))

    with pytest.raises(RewardError, match="in epoch 2"):
        tune(fails_in_epoch_2, tmp_path)
    last = find(tmp_path)
    assert last.name == "step_00000004" and verify(last)["step"] == 4
    assert sorted(file.name for file in last.parent.iterdir()) == ["step_00000002", "step_00000004"]
    assert load(last, raw=True).step == 4
    gone_on = tune(lambda x, p, m: x.mean((1, 2)), tmp_path, resume=load_state(last))
    whole = tune(lambda x, p, m: x.mean((1, 2)), tmp_path / "whole")
    for name, value in whole.state_dict().items():
        assert torch.equal(gone_on.state_dict()[name], value), name
