"""Algorithms by name: each reaches a known optimum by its own settings, and refuses those that it does not have."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from dforce import fit
from dforce.align import (
    AlignObjective,
    GroupAdvantage,
    OnPolicy,
    Pairs,
    PerPromptStats,
    Query,
    RewardError,
    Sampler,
    add_lowrank,
    best_against_worst,
    clip_advantage,
    denoising_error,
    disabled,
    nft,
    policy_gradient,
    preference,
    without_adapters,
    write_pairs,
)
from dforce.align.algorithms.common import Setup
from dforce.align.loop import KLControl, tuning_epochs
from dforce.align.monitor import Monitor, has_density
from dforce.align.objectives import draw_levels
from dforce.align.value import RIDGE, StepCredit
from dforce.config import build, option, options
from dforce.core.denoiser import Precond
from dforce.core.loss import min_snr
from dforce.core.noise import Noise
from dforce.core.schedule import cosine, linear
from dforce.guidance.wrapper import classifier_free
from tests.align_bed import Gaussian, Vectors

OPTIMUM, BEGIN = 1.0, -0.5
ALGORITHMS = options("algorithm")

# What a one-dimensional problem wants besides the usual settings, which are made for images.
OWN = {
    "ddpo_sf": {"epochs": 30}, "ddpo_is": {"epochs": 12}, "dpok": {"epochs": 12, "kl": 0.001},
    "grpo": {"epochs": 12}, "rwr": {"epochs": 12, "updates": 4, "beta": 2.0},
    "filtered": {"epochs": 12, "updates": 4, "keep": 0.25},
    "sft": {"epochs": 24, "updates": 4, "keep": 0.02, "samples": 1024, "advantage": "batch"},
    "diffusion_dpo": {"epochs": 12, "updates": 4, "beta": 20.0}, "d3po": {"epochs": 24, "updates": 4, "beta": 0.02},
    "draft": {"epochs": 20}, "nft": {"epochs": 12, "updates": 4},
}


def reward(x, prompts, metadata):
    return -(x[:, 0, 0] - OPTIMUM).square()


def ask(n, generator):
    return Query(["a"] * n)


def algorithm(name, **settings):
    return build({**option("algorithm", name), **settings})


def prepared(name, sampler, reward, ask, *, settings=None, **how):
    return algorithm(name, **(settings or {})).prepare(Setup(sampler, reward, ask, **how))


def run(*what, **how):
    """Every epoch of an algorithm, as they come."""
    return tuning_epochs(prepared(*what, **how), device="cpu")


def world(**how):
    schedule = linear(1000)
    model = Gaussian(schedule, BEGIN, 0.5)
    return model, Sampler(model, schedule, schedule.grid(4)[:, None], (1, 1), **how)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name == "d3po" else [])
                                  for name in ALGORITHMS])
@pytest.mark.quick(4)
def test_every_algorithm_reaches_the_optimum(name) -> None:
    model, sampler = world()
    aligning = prepared(name, sampler, reward, ask, settings={"lr": 0.07, "samples": 128, **OWN[name]})
    epochs = list(tuning_epochs(aligning, device="cpu"))
    # One draw has no better samples than it has: their mean is where supervised fine-tuning ends.
    optimum = float(aligning.source.chosen.x.mean()) if name == "sft" else OPTIMUM
    # The preferences' reference stays behind and holds them back: they must have gone most of the way.
    within = 0.6 if name in ("diffusion_dpo", "d3po") else 0.25
    assert BEGIN + 0.2 < optimum and float(model.mean.detach()) == pytest.approx(optimum, abs=within)
    assert epochs[-1].number == OWN[name]["epochs"] == len(epochs)
    assert epochs[-1].queries == (1024 if name == "sft" else 128 * len(epochs))


# ---------------------------------------------------------------------------------------------------------- settings

def test_settings_that_an_algorithm_does_not_have_are_refused_by_name() -> None:
    for name, setting in (("rwr", "kl"), ("filtered", "beta"), ("ddpo_sf", "clip_nats"), ("ddpo_sf", "passes"),
                          ("grpo", "advantage"), ("draft", "limit"), ("sft", "group"), ("dpok", "preferences"),
                          ("diffusion_dpo", "kl_target"), ("nft", "clip_nats")):
        with pytest.raises(ValueError, match=f"takes no '{setting}'"):
            algorithm(name, **{setting: 1})
    with pytest.raises(ValueError, match="'dpok'"):
        algorithm("dpokk")
    with pytest.raises(ValueError, match="epochs must be at least 1 and"):
        algorithm("dpok", epochs=0)
    with pytest.raises(ValueError, match="one of constant, cosine"):
        algorithm("dpok", decay="linear")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_file_of_an_algorithm_writes_out_all_its_defaults(name) -> None:
    node, made = option("algorithm", name), algorithm(name)
    assert made == type(made)() and made.name == name
    assert set(node) == {"_target_", *(field.name for field in dataclasses.fields(made))}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_setting_of_an_algorithm_does_something(name, monkeypatch) -> None:
    """Each is read when the algorithm is put together or begins, for another purpose than the record."""
    seen: set[str] = set()
    made = algorithm(name, samples=16, **({"updates": 1} if "updates" in option("algorithm", name) else {}))

    class Read(type(made)):
        def __getattribute__(self, key):
            seen.add(key)
            return super().__getattribute__(key)

    watched = Read(**dataclasses.asdict(made))
    monkeypatch.setattr("dforce.align.algorithms.common.asdict", lambda _: dataclasses.asdict(made))
    seen.clear()
    _, sampler = world()
    aligning = watched.prepare(Setup(sampler, reward, ask))
    aligning.objective(aligning.source(0), torch.Generator().manual_seed(0))
    assert aligning.epochs == made.epochs and seen | {"epochs"} >= {field.name for field in dataclasses.fields(made)}


def test_an_epoch_tells_its_work_while_it_runs() -> None:
    _, sampler = world()
    aligning = prepared("ddpo_is", sampler, reward, ask, settings={"epochs": 2, "samples": 64}, seed=3)
    shares: list[float] = []
    list(tuning_epochs(aligning, seed=5, device="cpu", advance=shares.append))
    steps = len(sampler.matrix) - 1
    assert sum(shares) == pytest.approx(2) and len(shares) == 2 * (steps + aligning.per_epoch)


def test_ddpo_is_by_name_is_the_one_put_together_by_hand() -> None:
    ends = []
    for by_name in (True, False):
        model, sampler = world()
        if by_name:
            settings = {"epochs": 2, "samples": 64, "limit": 1.0}
            aligning = prepared("ddpo_is", sampler, reward, ask, settings=settings, seed=3)
            list(tuning_epochs(aligning, seed=5, device="cpu"))
        else:
            stats = PerPromptStats(64, 16)
            source = OnPolicy(sampler, reward, ask, samples=64, updates=4, seed=3,
                              credit=lambda r, prompts, group, stats=stats: clip_advantage(stats(r, prompts), 1.0))
            list(fit(AlignObjective(model, sampler.schedule, policy_gradient()), source, lr=3e-4, steps=8, warmup=4,
                     decay="constant", weight_decay=0.0, ema=None, precision="fp32", seed=5, device="cpu"))
        ends.append(model.mean.detach().clone())
    assert torch.equal(*ends) and not torch.equal(ends[0], torch.tensor([BEGIN]))


@pytest.mark.parametrize("name, more", [("ddpo_sf", {}), ("dpok", {}), ("dpok", {"gae": 0.9}), ("grpo", {}),
                                        ("diffusion_dpo", {}), ("d3po", {})])
def test_a_constant_reward_changes_nothing(name, more) -> None:
    model, sampler = world()
    settings = {"epochs": 2, "samples": 32, **({"updates": 2} if name != "ddpo_sf" else {}), **more}
    list(run(name, sampler, lambda x, prompts, metadata: [0.1] * len(x), ask, settings=settings))
    assert torch.equal(model.mean.detach(), torch.tensor([BEGIN]))


# ------------------------------------------------------------------------------------------------------- KL control

def test_the_weight_moves_against_the_kl() -> None:
    fixed = KLControl(0.3)
    fixed.see(torch.tensor(99.0))
    fixed.step()
    assert fixed.weight == 0.3
    for seen, factor in ((20.0, 1.1), (11.0, 1.05), (10.0, 1.0), (9.5, 0.975), (1.0, 0.9), (math.nan, 1.0)):
        control = KLControl(0.3, 10.0)
        control.see(torch.tensor(seen))
        control.step()
        assert control.weight == pytest.approx(0.3 * factor)
        control.step()  # nothing seen since
        assert control.weight == pytest.approx(0.3 * factor)
    for wrong in ((0.0, 5.0), (0.1, 0.0), (-0.1, None), (math.inf, None)):
        with pytest.raises(ValueError, match="KL"):
            KLControl(*wrong)


@pytest.mark.parametrize("target", [0.2, 5.0, 300.0])
def test_the_kl_comes_to_its_target(target) -> None:
    """Of a policy that answers a weight w with the KL 1 / (2 w^2), as the tilt of a Gaussian reward does."""
    control = KLControl(0.1, target)
    for _ in range(80):
        control.see(torch.tensor(0.5 / control.weight**2))
        control.step()
    assert control.weight == pytest.approx((0.5 / target) ** 0.5, rel=1e-3)


def test_the_weight_of_a_run_is_steered() -> None:
    weights = {}
    for target in (1e-3, 1e3):
        _, sampler = world()
        settings = {"epochs": 3, "samples": 16, "updates": 1, "lr": 0.02, "kl": 0.1, "kl_target": target}
        aligning = prepared("dpok", sampler, reward, ask, settings=settings)
        weights[target] = [epoch.metrics["kl_weight"] for epoch in tuning_epochs(aligning, device="cpu")]
    assert weights[1e3] == pytest.approx([0.1, 0.09, 0.081])
    assert weights[1e-3] == pytest.approx([0.1, 0.09, 0.099])  # in its first epoch a policy is where it began


# ------------------------------------------------------------------------------------------- going on, and going wrong

def test_a_run_goes_on_bit_for_bit_with_its_memory() -> None:
    settings = {"samples": 32, "updates": 2, "lr": 0.05, "kl": 0.1, "kl_target": 0.5}
    model, sampler = world()
    whole = [(epoch.metrics["kl_weight"], epoch.metrics["reward"]) for epoch in tuning_epochs(
        prepared("dpok", sampler, reward, ask, settings={**settings, "epochs": 4}), device="cpu")]
    first, sampler = world()
    half = list(run("dpok", sampler, reward, ask, settings={**settings, "epochs": 2}))[-1]
    second, sampler = world()
    going_on = prepared("dpok", sampler, reward, ask, settings={**settings, "epochs": 4})
    going_on.remember(half.memory)
    rest = list(tuning_epochs(going_on, resume=half.log.training.state(), device="cpu"))
    assert [(epoch.metrics["kl_weight"], epoch.metrics["reward"]) for epoch in rest] == whole[2:]
    assert torch.equal(second.mean, model.mean) and [epoch.number for epoch in rest] == [3, 4]


@pytest.mark.parametrize("wrong, message", [
    (lambda x, prompts, metadata: [math.nan] * len(x), "not finite"),
    (lambda x, prompts, metadata: x.mean(), "one number for each"),
    (lambda x, prompts, metadata: 1 / 0, "ZeroDivisionError"),
])
def test_a_reward_that_fails_later_leaves_the_weights_before_it(wrong, message) -> None:
    model, sampler = world()
    asked = []

    def turns_bad(x, prompts, metadata):
        asked.append(len(x))
        return wrong(x, prompts, metadata) if len(asked) > 2 else reward(x, prompts, metadata)

    epochs = run("ddpo_is", sampler, turns_bad, ask, settings={"epochs": 5, "samples": 16})
    next(epochs)
    good = next(epochs).log.training.state()
    with pytest.raises(RewardError, match=message):
        next(epochs)
    assert torch.equal(model.mean.detach(), good.model["denoiser.mean"])


def test_draft_wants_a_differentiable_reward_and_a_sampler_of_eta() -> None:
    _, sampler = world()
    with pytest.raises(ValueError, match="differentiable reward"):
        list(run("draft", sampler, lambda x, prompts, metadata: reward(x.detach(), prompts, metadata), ask,
                 settings={"samples": 8}))
    with pytest.raises(ValueError, match="min_std"):
        prepared("draft", world(min_std=0.1)[1], reward, ask)


# ------------------------------------------------------------------------------------------------------- preferences

def test_preferences_of_a_file(tmp_path) -> None:
    model, sampler = world()
    generator = torch.Generator().manual_seed(0)
    win, lose = (mean + 0.1 * torch.randn(32, 1, 1, generator=generator) for mean in (0.8, -1.2))
    write_pairs(tmp_path / "pairs.npz", Pairs(win, lose, None, torch.ones(32)))
    settings = {"preferences": str(tmp_path / "pairs.npz"), "epochs": 8, "updates": 4, "lr": 0.05, "beta": 20.0}
    epochs = list(run("diffusion_dpo", sampler, reward, ask, settings=settings))
    assert float(model.mean.detach()) > BEGIN + 0.3 and epochs[-1].queries == 0
    write_pairs(tmp_path / "wide.npz", Pairs(torch.zeros(4, 1, 2), torch.ones(4, 1, 2), None, torch.ones(4)))
    with pytest.raises(ValueError, match="another model"):
        prepared("diffusion_dpo", sampler, reward, ask, settings={"preferences": str(tmp_path / "wide.npz")})
    for setting in ({"samples": 8}, {"group": 4}, {"pairs": 1}, {"passes": 2}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))} does nothing where the pairs come from a file"):
            prepared("diffusion_dpo", sampler, reward, ask, settings={**settings, **setting})
    np.savez(tmp_path / "empty.npz", win=np.zeros((0, 1, 1)), lose=np.zeros((0, 1, 1)))
    with pytest.raises(ValueError, match="no preference pairs"):
        prepared("diffusion_dpo", sampler, reward, ask, settings={"preferences": str(tmp_path / "empty.npz")})


# --------------------------------------------------------------------------------------------- adapters, and the watch

def small():
    """An untrained network: with no noise in the last step its samples would hardly depend on the steps before."""
    schedule = cosine(100)
    torch.manual_seed(0)
    model = Precond(Vectors(3), schedule, "x0")
    return model, Sampler(model, schedule, schedule.grid(4, "index")[:, None], (1, 3), min_std=0.2)


def bright(x, prompts, metadata):
    return x.mean((1, 2))


def test_low_rank_adapters_learn_and_what_is_beneath_is_the_reference() -> None:
    model, sampler = small()
    before = copy.deepcopy(model)
    add_lowrank(model, rank=2)
    aligning = prepared("dpok", sampler, bright, ask, settings={"epochs": 8, "samples": 128, "lr": 3e-3, "kl": 0.01})
    watch = Monitor(sampler, before, ask, {"reward": lambda x, query: bright(x, None, None)}, samples=64)
    begin = watch.look()
    epochs = list(tuning_epochs(aligning, device="cpu"))
    end = watch.look()
    assert begin["kl"] == pytest.approx(0, abs=1e-6) and end["reward"] > begin["reward"] + 0.1
    assert min(end["kl"], epochs[-1].metrics["kl"]) > 0.05  # both are to what is beneath the adapters
    weights = {name: value for name, value in model.named_parameters() if "lowrank" not in name}
    assert all(torch.equal(value, weights[name]) for name, value in before.named_parameters())


def guided(scale, rank):
    """A network with dropout, and a sampler that guides it."""
    model, sampler = small()
    model.net.outer.append(torch.nn.Dropout(0.5))
    if rank is not None:
        add_lowrank(model, rank=rank)
    policy = classifier_free(model, scale, {"static": {"class": torch.zeros(1, dtype=torch.long)}})
    return model, sampler._replace(denoiser=policy)


def ask_classes(n, generator):
    return Query(["a"] * n, {"static": {"class": torch.arange(n) % 3}})


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("scale", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("name", ["diffusion_dpo", "d3po", "nft", "dpok"])
def test_at_equal_weights_the_implicit_reward_is_zero_at_every_guidance(name, scale, rank) -> None:
    model, sampler = guided(scale, rank)
    more = {"kl": 1.0} if name == "dpok" else {}
    aligning = prepared(name, sampler, bright, ask_classes, settings={"samples": 64, **more})
    aligning.objective.train()
    batch = aligning.source(0)
    loss, logs = aligning.objective(batch, torch.Generator().manual_seed(1))
    if name == "dpok":
        assert float(logs["kl"]) == pytest.approx(0, abs=1e-6)
    elif name == "nft":  # both of its models are then the network itself, whatever the reward
        level, noise = draw_levels(sampler.schedule, batch.x, torch.Generator().manual_seed(1))
        error = denoising_error(model, sampler.schedule, batch.x, level, noise, cond=batch.cond, weight=min_snr())
        torch.testing.assert_close(loss, error.mean())
    else:
        assert float(loss) == pytest.approx(float(batch.weight.mean()) * math.log(2), rel=1e-5)


@pytest.mark.parametrize("loss", [preference(beta=50.0), nft()])
def test_the_unguided_reference_of_adapters_is_what_is_beneath_them(loss) -> None:
    model, sampler = guided(3.0, None)
    copied = classifier_free(copy.deepcopy(model), 3.0, None)
    add_lowrank(model, rank=2)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value += 0.1 * name.endswith("lowrank.b")
    source = OnPolicy(sampler, bright, ask_classes, samples=24, group=4, credit=GroupAdvantage(), traces=False,
                      prepare=best_against_worst() if "preference" in loss.__qualname__ else None)
    objectives = [AlignObjective(sampler.denoiser, sampler.schedule, loss, reference=reference).train()
                  for reference in (without_adapters(sampler.denoiser), copied)]
    batch = source(0)
    one, other = (each(batch, torch.Generator().manual_seed(1))[0] for each in objectives)
    torch.testing.assert_close(one, other)
    with disabled(model):
        assert abs(float((one - objectives[0](batch, torch.Generator().manual_seed(1))[0]).detach())) > 1e-4


def test_the_watch_sees_what_the_sampler_draws_and_looks_the_same_twice() -> None:
    model, sampler = small()
    measures = {"reward": lambda x, query: bright(x, None, None), "many": lambda x, query: len(x)}
    watch = Monitor(sampler, model, ask, measures, samples=12, seed=4)
    found = watch.look()
    assert found == watch.look() and found["kl"] == 0 and found["many"] == 12
    drawn = sampler.tokens(12, None, Noise(4))
    assert found["reward"] == pytest.approx(float(bright(drawn, None, None).mean()), abs=1e-6)
    flat = Monitor(sampler._replace(eta=0.0, min_std=0.0, order=2), model, ask, {"reward": measures["reward"]})
    assert not has_density(flat.sampler) and set(flat.look()) == {"reward", "reward_error"}
    with pytest.raises(ValueError, match="at least one sample"):
        Monitor(sampler, model, ask, {}, samples=0)


def test_groups_are_of_one_prompt_in_grpo() -> None:
    _, sampler = world()
    aligning = prepared("grpo", sampler, reward, ask, settings={"samples": 16, "group": 4})
    drawn = aligning.source.draw(0)
    assert drawn.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    torch.testing.assert_close(drawn.advantage, GroupAdvantage()(drawn.reward, ["a"] * 16, drawn.group))


# ---------------------------------------------------------------------------------------------------- credit of steps

def test_credit_of_steps_by_hand() -> None:
    model, sampler = world()
    drawn = OnPolicy(sampler, reward, ask, samples=8, credit=GroupAdvantage(), group=8).draw(0)
    steps, found = sampler.matrix.shape[0] - 1, {}
    for decay in (0.0, 0.5, 1.0):
        credit = StepCredit(sampler, decay)
        first = credit(drawn)
        assert torch.equal(first.advantage, drawn.advantage.view(8, 1, 1).expand(8, steps, 1))
        features = credit._features(drawn)
        size = features.square().sum(0).mean(1)[:, None, None]
        gram = features.transpose(0, 1).mT @ features.transpose(0, 1) + RIDGE * size * torch.eye(features.shape[2])
        value = (features * torch.linalg.solve(gram, (features * drawn.advantage[:, None, None]).sum(0))).sum(2)
        found[decay] = credit(drawn).advantage[..., 0]
        after = torch.cat([value[:, 1:], drawn.advantage[:, None]], 1)
        wanted = {0.0: after - value, 1.0: drawn.advantage[:, None] - value}
        if decay in wanted:
            torch.testing.assert_close(found[decay], wanted[decay], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[0.5][:, -1], found[0.0][:, -1])
    torch.testing.assert_close(found[0.5][:, -2], found[0.0][:, -2] + 0.5 * found[0.0][:, -1])
    with pytest.raises(ValueError, match="lie in"):
        StepCredit(sampler, 1.5)
    with pytest.raises(ValueError, match="runs with their steps"):
        StepCredit(sampler)(drawn._replace(trace=None))


@pytest.mark.slow
def test_credit_of_steps_leaves_the_expected_gradient_with_less_noise() -> None:
    model, sampler = world()
    source = OnPolicy(sampler, reward, ask, samples=128, credit=GroupAdvantage(), group=128)
    objective = AlignObjective(model, sampler.schedule, policy_gradient(clip_nats=None))
    credit = StepCredit(sampler, 1.0)
    gradients = []
    for epoch in range(28):
        drawn = source.draw(epoch)
        pair = []
        for rows in (drawn, credit(drawn)):
            objective.zero_grad()
            objective(rows, None)[0].backward()
            pair.append(float(model.mean.grad))
        gradients.append(pair)
    plain, credited = np.array(gradients[4:]).T
    assert credit.explained[-1] > 0.5
    assert credited.std() < 0.8 * plain.std()
    assert abs((credited - plain).mean()) < 3 * (credited - plain).std() / len(plain) ** 0.5
