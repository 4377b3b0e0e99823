"""On-policy batches: who is asked for what, credit, counted randomness, resuming, and rewards that fail."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from dforce import fit
from dforce.align import (
    AlignObjective,
    GroupAdvantage,
    OffPolicyError,
    OnPolicy,
    Pairs,
    PerPromptStats,
    Preferences,
    Query,
    RewardError,
    Sampler,
    Samples,
    Vote,
    ask_reward,
    best_against_worst,
    clip_advantage,
    direct_reward,
    flow_sde,
    policy_gradient,
    preference,
    read_pairs,
    regression,
    standardised,
    stepwise_preference,
    through,
    write_pairs,
)
from dforce.align.trace import record
from dforce.core.denoiser import Precond
from dforce.core.matrix import pyramid
from dforce.core.noise import Noise
from dforce.core.sample import generate
from dforce.core.schedule import cosine, flow
from dforce.core.tree import leaves
from dforce.guidance.wrapper import classifier_free
from tests.align_bed import Gaussian, Vectors

F64 = torch.float64


def classes(n, generator):
    number = torch.randint(0, 3, (n,), generator=generator)
    return Query([f"class {c}" for c in number.tolist()], {"static": {"class": number}}, [{"class": c} for c in number])


def bright(x, prompts, metadata):
    return x.mean((1, 2))


def world(dim=3):
    schedule = cosine(100)
    torch.manual_seed(0)
    return schedule, Precond(Vectors(dim), schedule, "v")


def make(schedule, model, reward=bright, **how):
    sampler = Sampler(model, schedule, how.pop("matrix", schedule.grid(4)[:, None]), how.pop("shape", (1, 3)),
                      **{name: how.pop(name) for name in ("std", "rows", "order", "eta", "autocast") if name in how})
    return OnPolicy(sampler, reward, how.pop("ask", classes), **{"samples": 24, "credit": standardised, **how})


# ------------------------------------------------------------------------------------------------------------ credit

def test_advantages_do_not_mind_an_offset_or_a_scale() -> None:
    reward, prompts = torch.randn(12, dtype=F64), ["a", "b", "c"] * 4
    group = torch.arange(3).repeat_interleave(4)
    for credit in (standardised, GroupAdvantage(), GroupAdvantage(global_std=True), PerPromptStats(8, 4)):
        found = credit(reward, prompts, group)
        if isinstance(credit, PerPromptStats):
            credit.load_state_dict({})
        torch.testing.assert_close(credit(5 * reward + 300, prompts, group), found, rtol=0, atol=2e-3)
        if isinstance(credit, PerPromptStats):
            credit.load_state_dict({})
        assert (credit(torch.full((12,), 0.1, dtype=F64), prompts, group) == 0).all()


def test_group_advantages_by_hand() -> None:
    reward, group = torch.tensor([1.0, 3.0, 5.0, 5.0], dtype=F64), torch.tensor([0, 0, 7, 7])
    own = GroupAdvantage(eps=0.0)(reward, [], group)
    assert own[:2].tolist() == [-1.0, 1.0] and own[2:].tolist() == [0.0, 0.0]
    everyone = GroupAdvantage(global_std=True, eps=0.0)(reward, [], group)
    assert everyone[:2].tolist() == pytest.approx([-1 / np.std([1, 3, 5, 5]), 1 / np.std([1, 3, 5, 5])])
    with pytest.raises(ValueError, match="group of one"):
        GroupAdvantage()(reward, [], torch.tensor([0, 0, 1, 2]))


def test_per_prompt_statistics_are_those_of_the_published_tracker() -> None:
    """ddpo-pytorch: append first, then the prompt's own mean and std if it has min_count rewards, else the batch's."""
    stats, generator, history = PerPromptStats(6, 4), np.random.default_rng(0), {}
    for _ in range(5):
        prompts = list(generator.choice(["cat", "dog", "hen"], 8, p=[0.6, 0.3, 0.1]))
        rewards = generator.normal(size=8)
        found = stats(torch.tensor(rewards), prompts)
        wanted = np.empty(8)
        for prompt in np.unique(prompts):
            own = np.array([p == prompt for p in prompts])
            history.setdefault(prompt, []).extend(rewards[own])
            kept = np.array(history[prompt][-6:])
            few = len(kept) < 4
            wanted[own] = (rewards[own] - (rewards if few else kept).mean()) / ((rewards if few else kept).std() + 1e-6)
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)
    resumed = PerPromptStats(6, 4)
    resumed.load_state_dict(stats.state_dict())
    new = torch.randn(3, dtype=F64)
    assert torch.equal(resumed(new, ["cat"] * 3), stats(new, ["cat"] * 3))
    with pytest.raises(ValueError, match="2 prompts for 3 rewards"):
        stats(new, ["cat"] * 2)
    with pytest.raises(ValueError, match="min_count"):
        PerPromptStats(4, 5)
    assert clip_advantage(torch.tensor([-9.0, 2.0, 9.0]), 5).tolist() == [-5, 2, 5]


@pytest.mark.parametrize("buffer", [1, 16, 31, 32])
def test_statistics_of_a_prompt_cover_the_whole_batch(buffer) -> None:
    """A window shorter than the batch would judge rewards by others that came later."""
    reward = torch.cat([torch.arange(16.0), torch.full((16,), 5.0)])
    found = PerPromptStats(buffer, min(16, buffer))(reward, ["a"] * 32)
    assert float(found[0]) == pytest.approx(-1.79, abs=0.005)
    torch.testing.assert_close(found, standardised(reward), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ batches

def test_an_epoch_is_dealt_out_once_each_pass() -> None:
    schedule, model = world()
    kept = []
    source = make(schedule, model, samples=24, updates=3, passes=2, prepare=lambda found: kept.append(found) or found)
    batches = [source(step) for step in range(6)]
    whole = kept[0]
    assert isinstance(batches[0], Samples) and batches[0].trace.log_prob.shape == (8, 4, 1)
    for turn in (batches[:3], batches[3:]):
        dealt = torch.cat([batch.reward for batch in turn])
        assert torch.equal(dealt.sort().values, whole.reward.sort().values)
    assert not torch.equal(batches[0].reward, batches[3].reward)                         # another order
    for batch in batches:
        torch.testing.assert_close(batch.reward, batch.x.mean((1, 2)).double())
        assert torch.equal(batch.x, batch.trace.x[:, -1])
        assert torch.equal(batch.cond["static"]["class"], batch.trace.cond["static"]["class"])
    torch.testing.assert_close(whole.advantage, standardised(whole.reward))
    assert len(source.epochs) == 1 and source(6).x is not None and len(source.epochs) == 2
    assert source.epochs[1]["queries"] == 48


def test_a_group_shares_its_prompt_and_if_asked_its_noise() -> None:
    schedule, model = world()
    found = make(schedule, model, samples=12, group=4).draw(0)
    assert found.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    number = found.cond["static"]["class"].view(3, 4)
    assert (number == number[:, :1]).all()
    assert len(found.trace.x[:, 0].unique(dim=0)) == 12
    same = make(schedule, model, samples=12, group=4, same_start=True).draw(0)
    assert len(same.trace.x[:, 0].unique(dim=0)) == 3 and len(same.x.unique(dim=0)) == 12  # only the steps differ


def test_randomness_is_counted_and_not_of_the_cut() -> None:
    schedule, model = world()
    one, other = make(schedule, model, rows=5), make(schedule, model)
    for step in (0, 1):
        a, b = one(step), other(step)
        torch.testing.assert_close(a.x, b.x, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.trace.log_prob, b.trace.log_prob, rtol=0, atol=1e-3)
    fresh = make(schedule, model)
    torch.testing.assert_close(fresh(1).x, other(1).x, rtol=0, atol=0)                   # an epoch needs none before it
    assert not torch.equal(make(schedule, model, seed=1)(0).x, make(schedule, model)(0).x)


def test_samples_without_traces_take_the_fast_path_of_any_order() -> None:
    schedule, model = world()
    source = make(schedule, model, traces=False, order=2, eta=0.0)
    found = source.draw(0)
    assert found.trace is None
    again = make(schedule, model, traces=False, order=2, eta=0.0, rows=7).draw(0)
    torch.testing.assert_close(again.x, found.x, rtol=0, atol=1e-5)
    flowing = flow(100)
    net = Precond(Vectors(3), flowing, "flow")
    with_std = make(flowing, net, traces=False, std=flow_sde(flowing), eta=0.0).draw(0)
    recorded = make(flowing, net, std=flow_sde(flowing), eta=0.0).draw(0)
    torch.testing.assert_close(with_std.x, recorded.x, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="first order"):
        make(schedule, model, order=2).draw(0)


def test_the_reward_is_told_what_was_asked_and_sees_what_was_decoded() -> None:
    schedule, model = world()
    seen = {}

    def reward(images, prompts, metadata):
        seen.update(images=images, prompts=prompts, metadata=metadata)
        return np.arange(len(images))

    found = make(schedule, model, reward, samples=6, group=2, decode=lambda x: x[:, 0].clamp(0, 1)).draw(0)
    assert torch.equal(seen["images"], found.x[:, 0].clamp(0, 1))
    number = found.cond["static"]["class"].tolist()
    assert seen["prompts"] == [f"class {c}" for c in number] and [m["class"] for m in seen["metadata"]] == number
    assert found.reward.tolist() == list(range(6)) and found.reward.dtype == F64


def test_it_looks_at_the_model() -> None:
    schedule = cosine(100)
    model = Gaussian(schedule, 0.0, 0.1)
    source = make(schedule, model, shape=(1, 1), ask=lambda n, generator: Query([0] * n))
    before = float(source(0).x.mean())
    with torch.no_grad():
        model.mean += 2
    assert float(source(1).x.mean()) == pytest.approx(before + 2, abs=0.1)


def test_resuming_at_an_epoch_is_going_on_and_in_mid_epoch_an_error() -> None:
    schedule, model = world()

    def run(model, steps, resume=None, first=0):
        source = make(schedule, model, updates=2, limit=1.0)
        objective = AlignObjective(model, schedule, policy_gradient(fraction=0.5))
        logs = list(fit(objective, source, lr=1e-2, steps=steps, warmup=1, weight_decay=0.0, ema=None, device="cpu",
                        decay="constant", precision="fp32", resume=resume))
        return logs[-1].training.state()

    whole, part = copy.deepcopy(model), copy.deepcopy(model)
    wanted, half = run(whole, 4), run(part, 2)
    found = run(copy.deepcopy(model), 4, resume=half)
    for name, value in wanted.model.items():
        assert torch.equal(value, found.model[name])
    assert any(not torch.equal(value, half.model[name]) for name, value in wanted.model.items())
    with pytest.raises(ValueError, match="step 3 is in the middle of an epoch of 2 updates.*resume at step 2"):
        make(schedule, model, updates=2)(3)


def test_accumulation_and_chunks_give_the_gradient_of_the_whole() -> None:
    schedule, model = world()
    ends = []
    for how in ({}, {"accumulate": 3}, {"rows": 7, "checkpoint": True}):
        own = copy.deepcopy(model)
        loss = policy_gradient(**{name: value for name, value in how.items() if name != "accumulate"})
        logs = fit(AlignObjective(own, schedule, loss), make(schedule, own), lr=1e-2, steps=1, warmup=1, ema=None,
                   weight_decay=0.0, precision="fp32", device="cpu", accumulate=how.get("accumulate", 1))
        ends.append((next(logs).metrics["grad_norm"], torch.cat([p.detach().flatten() for p in own.parameters()])))
    for norm, weights in ends[1:]:
        assert norm == pytest.approx(ends[0][0], rel=1e-4)
        torch.testing.assert_close(weights, ends[0][1], rtol=0, atol=1e-3)


LOSSES = {"sf": partial(policy_gradient, clip_nats=None), "is": partial(policy_gradient, clip_nats=0.3),
          "kl": partial(policy_gradient, kl_weight=0.3), "sequence": partial(policy_gradient, reduce="sequence"),
          "some steps": partial(policy_gradient, fraction=0.5),
          "d3po": stepwise_preference, "d3po, some": partial(stepwise_preference, fraction=0.5, reduce="sequence")}


class Kept:
    """A tensor that a graph keeps; `most` numbers were kept at once."""

    now = most = 0

    def __init__(self, x):
        self.x = x
        Kept.now += x.numel()
        Kept.most = max(Kept.most, Kept.now)

    def __del__(self):
        Kept.now -= self.x.numel()


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.quick(4)
def test_rows_bound_what_is_held_and_shown_at_once(name, stepwise) -> None:
    """Whatever the rows: the network is never shown more, no graph keeps more of its activations, equal results."""
    schedule, model = world()
    model.double()
    generator, start = torch.Generator().manual_seed(0), torch.randn(12, 2, 3, dtype=F64)
    cond = {"static": {"class": torch.arange(12) % 3}}
    trace = record(model, schedule, pyramid(schedule.grid(4), 2, 2), start, cond=cond, noise=Noise(3))
    shape = (12, *trace.log_prob.shape[1:]) if stepwise else (12,)
    advantage = torch.randn(shape, dtype=F64, generator=generator)
    batch = Samples(trace.x[:, -1], cond, torch.randn(12),
                    advantage.sum(2) if stepwise and name == "sequence" else advantage, torch.arange(12) // 6, trace)
    if name.startswith("d3po"):
        batch = best_against_worst(2)(batch._replace(advantage=torch.randn(12, dtype=F64, generator=generator)))
    reference, seen, ends = copy.deepcopy(model), [], []
    with torch.no_grad():
        for parameter in model.parameters():  # the policy has moved since: some ratios are beyond the clip
            parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel(), dtype=F64)).view_as(parameter))
    model.net.register_forward_pre_hook(lambda net, arguments: seen.append(len(arguments[0])))
    for rows in (None, 1, 2, 5, 30, 1000):
        objective = AlignObjective(model, schedule, LOSSES[name](rows=rows), reference=reference)
        model.zero_grad()
        seen.clear()
        Kept.now = Kept.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.x):
            value, logs = objective(batch, torch.Generator().manual_seed(0))
        value.backward()
        ends.append((value.detach(), torch.cat([p.grad.flatten() for p in model.parameters()]), logs, Kept.most))
        assert rows is None or max(seen) <= rows
        del value
    for value, gradient, logs, _ in ends[1:]:
        torch.testing.assert_close(value, ends[0][0], rtol=1e-12, atol=0)
        assert (gradient - ends[0][1]).norm() < 1e-12 * gradient.norm()
        assert logs.keys() == ends[0][2].keys()
        for key in logs:
            torch.testing.assert_close(logs[key], ends[0][2][key], rtol=1e-12, atol=1e-12)
    assert all(most < 0.4 * ends[0][3] for _, _, _, most in ends[1:4])


# --------------------------------------------------------------------------------------------------- the one policy

class Dropped(nn.Module):
    causal = recurrent = False

    def __init__(self):
        super().__init__()
        self.line, self.dropout = nn.Linear(3, 3), nn.Dropout(0.5)

    def init_state(self, batch, cond=None):
        return torch.zeros(batch, 0)

    def forward(self, x, label, state, cond=None):
        return self.dropout(self.line(x)), state


def test_dropout_stays_off_while_the_policy_learns() -> None:
    schedule = cosine(100)
    model = Precond(Dropped(), schedule, "v")
    source = make(schedule, model)
    objective = AlignObjective(model, schedule, policy_gradient())
    list(fit(objective, source, lr=1e-3, steps=2, warmup=1, ema=None, device="cpu", precision="fp32"))
    assert max(epoch["ratio_error"] for epoch in source.epochs) < 1e-3
    model.train()
    with pytest.raises(OffPolicyError, match="dropout"):
        make(schedule, model)(0)


def test_a_guided_policy_learns_through_its_guidance() -> None:
    schedule, model = world()
    null = {"static": {"class": torch.zeros(1, dtype=torch.long)}}
    policy = classifier_free(model, 3.0, null)
    objective = AlignObjective(policy, schedule, policy_gradient())
    assert set(dict(objective.named_parameters())) == {f"denoiser.{name}" for name, _ in model.named_parameters()}
    before = copy.deepcopy(model.state_dict())
    logs = list(fit(objective, make(schedule, policy), lr=1e-2, steps=1, warmup=1, ema=None, device="cpu",
                    precision="fp32"))
    assert logs[-1].metrics["log_ratio"] < 1e-3 and logs[-1].metrics["grad_norm"] > 0
    assert not torch.equal(model.net.label.weight, before["net.label.weight"])
    with pytest.raises(ValueError, match="holds no nn.Module"):
        AlignObjective(object(), schedule, policy_gradient())


def test_bfloat16_is_the_policy_or_is_not() -> None:
    schedule, model = world()
    source = make(schedule, model, autocast=torch.bfloat16, tolerance=0.5)
    logs = {}
    for dtype in (None, torch.bfloat16):
        objective = AlignObjective(model, schedule, policy_gradient(autocast=dtype))
        logs[dtype] = float(objective(source(0), None)[1]["log_ratio"])
    assert logs[torch.bfloat16] < 1e-3 < logs[None]


def test_the_reference_moves_only_when_told() -> None:
    schedule, model = world()
    objective = AlignObjective(model, schedule, preference(), reference=copy.deepcopy(model))
    assert not [name for name in objective.state_dict() if "reference" in name or "outside" in name]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    objective.sync(keep=0.25)
    for one, other in zip(model.parameters(), objective.reference.parameters(), strict=True):
        torch.testing.assert_close(other, one - 0.25)
    objective.sync()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), objective.reference.parameters(),
                                                             strict=True))
    objective.to(F64)
    assert objective.reference.net.label.weight.dtype == F64
    model.float()
    source = make(schedule, model, samples=4, group=2, credit=GroupAdvantage(), traces=False)
    for loss, batch in ((preference(), best_against_worst()(source.draw(0))), (policy_gradient(kl_weight=1.0), None)):
        with pytest.raises(ValueError, match="needs a reference"):
            AlignObjective(model, schedule, loss)(batch or make(schedule, model).draw(0))
    with pytest.raises(ValueError, match="traces=True"):
        AlignObjective(model, schedule, policy_gradient())(source.draw(0))


# ------------------------------------------------------------------------------------------------ rewards that fail

@pytest.mark.parametrize("reward, told", [
    (lambda x, p, m: torch.where(torch.arange(len(x)) == 3, torch.nan, 1.0), "not finite for 1 of 24.*at 3: nan"),
    (lambda x, p, m: [float("inf")] * len(x), "not finite for 24 of 24"),
    (lambda x, p, m: x.mean(), r"one number for each of the 24 samples, \[24\], got \[\]"),
    (lambda x, p, m: x.mean(2), r"got \[24, 1\]"),
    (lambda x, p, m: None, "NoneType, which is no list of numbers"),
    (lambda x, p, m: 1 / 0, "raised ZeroDivisionError: division by zero"),
])
def test_a_reward_that_fails_in_mid_run_leaves_the_weights_as_they_were(reward, told) -> None:
    schedule, model = world()
    calls = []

    def fails_later(x, prompts, metadata):
        calls.append(len(x))
        return x.mean((1, 2)) if len(calls) < 3 else reward(x, prompts, metadata)

    source = make(schedule, model, fails_later)
    kept = {}
    with pytest.raises(RewardError, match=f"in epoch 2.*{told}"):
        for log in fit(AlignObjective(model, schedule, policy_gradient()), source, lr=1e-2, steps=9, warmup=1, ema=None,
                       device="cpu", precision="fp32"):
            kept = log.training.state().model
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[f"denoiser.{name}"])
    assert len(source.epochs) == 2


def test_rewards_of_every_kind_are_numbers() -> None:
    x = torch.zeros(2, 1, 1)
    for answer in ([1, 2], np.array([1.0, 2.0], dtype=np.float32), torch.tensor([1, 2]),
                   torch.tensor([1.0, 2.0], requires_grad=True)):
        found = ask_reward(lambda *_, answer=answer: answer, x, ["a", "b"])
        assert found.tolist() == [1, 2] and found.dtype == F64 and not found.requires_grad
    with pytest.raises(RewardError) as error:
        ask_reward(lambda *_: {}["x"], x, ["a", "b"])
    assert isinstance(error.value.__cause__, KeyError)


def test_callers_functions_may_write_into_what_they_are_given() -> None:
    schedule, model = world()
    written: dict = {}

    def spoil(*values):
        for value in values:
            if isinstance(value, torch.Tensor):
                value.fill_(-1)
            elif isinstance(value, list):
                spoil(*value)
                value.clear()
            elif isinstance(value, dict):
                spoil(*value.values())

    def samples_of(spoil):
        def reward(x, prompts, metadata):
            answer = bright(x, prompts, metadata)
            written.update(metadata[0])
            spoil(x, prompts, metadata)
            return answer

        def decode(x):
            shown = x.clone()
            spoil(x)
            return shown

        def credit(reward, prompts, group):
            advantage = standardised(reward, prompts, group)
            spoil(reward, prompts, group)
            return advantage

        about = {"target": torch.ones(2)}

        def ask(n, generator):
            return classes(n, generator)._replace(metadata=[about] * n)

        return make(schedule, model, Vote([reward, reward]), ask=ask, decode=decode, credit=credit).draw(0), about

    (one, about), (other, _) = samples_of(spoil), samples_of(lambda *values: None)
    assert torch.equal(about["target"], torch.ones(2)) and torch.equal(written["target"], torch.ones(2))
    for a, b in zip(leaves(one), leaves(other), strict=True):
        assert torch.equal(a, b)


def test_what_does_not_fit_is_refused() -> None:
    schedule, model = world()
    with pytest.raises(ValueError, match="samples a multiple of group, got 10, 4"):
        make(schedule, model, samples=10, group=4)
    with pytest.raises(ValueError, match="24 rows cannot be dealt into 5"):
        make(schedule, model, updates=5)(0)
    with pytest.raises(ValueError, match="asked for 24 prompts, got 3"):
        make(schedule, model, ask=lambda n, generator: Query(["a"] * 3))(0)


# -------------------------------------------------------------------------------------------------------- preferences

def scored(reward, group, traces=None):
    reward = torch.tensor(reward, dtype=F64)
    x = reward.float().view(-1, 1, 1)
    return Samples(x, {"static": {"class": torch.tensor(group)}}, reward, reward, torch.tensor(group), traces)


def test_the_best_meet_the_worst_of_their_group() -> None:
    found = best_against_worst(2)(scored([1, 5, 3, 2, 9, 9, 9, 9], [0, 0, 0, 0, 4, 4, 4, 4]))
    assert found.win.flatten().tolist() == [5, 3, 9, 9] and found.lose.flatten().tolist() == [1, 2, 9, 9]
    assert found.weight.tolist() == [1, 1, 0, 0] and found.cond["static"]["class"].tolist() == [0, 0, 4, 4]
    with pytest.raises(ValueError, match="groups of at least 4, got 3"):
        best_against_worst(2)(scored([1, 2, 3], [0, 0, 0]))


def test_ties_have_no_gradient_and_traces_go_with_their_samples() -> None:
    schedule, model = world()
    source = make(schedule, model, samples=12, group=4, credit=GroupAdvantage(), prepare=best_against_worst(2))
    batch = source(0)
    assert torch.equal(batch.win_trace.x[:, -1], batch.win) and torch.equal(batch.lose_trace.x[:, -1], batch.lose)
    objective = AlignObjective(model, schedule, stepwise_preference(), reference=copy.deepcopy(model))
    tied = batch._replace(weight=torch.zeros(6))
    for loss in (stepwise_preference(), preference()):
        objective = AlignObjective(model, schedule, loss, reference=copy.deepcopy(model))
        for rows, moves in ((batch, True), (tied, False)):
            objective.zero_grad()
            objective(rows, torch.Generator().manual_seed(0))[0].backward()
            assert (model.net.outer[0].weight.grad.abs().sum() > 0) == moves


def test_pairs_from_a_file(tmp_path) -> None:
    pairs = Pairs(torch.randn(6, 1, 3), torch.randn(6, 1, 3), {"static": {"class": torch.arange(6) % 3}}, torch.ones(6))
    write_pairs(tmp_path / "p.npz", pairs)
    found = read_pairs(tmp_path / "p.npz")
    assert torch.equal(found.win, pairs.win) and torch.equal(found.lose, pairs.lose)
    assert torch.equal(found.cond["static"]["class"], pairs.cond["static"]["class"])
    source = Preferences(found, batch=2)
    epoch = torch.cat([source(step).win for step in range(3)])
    assert sorted(epoch[:, 0, 0].tolist()) == sorted(pairs.win[:, 0, 0].tolist())
    schedule, model = world()
    objective = AlignObjective(model, schedule, preference(beta=100.0), reference=copy.deepcopy(model))
    logs = list(fit(objective, source, lr=3e-3, steps=60, warmup=1, ema=None, device="cpu", precision="fp32"))
    assert logs[0].metrics["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert np.mean([log.metrics["agrees"] for log in logs[-12:]]) > 0.9


def test_bad_preference_files_say_what_is_wrong(tmp_path) -> None:
    pairs = {"win": np.zeros((3, 1, 2)), "lose": np.zeros((3, 1, 2))}
    bad = [({"win": np.zeros((0, 1, 2)), "lose": np.zeros((0, 1, 2))}, "holds no preference pairs"),
           ({"win": pairs["win"]}, r"must hold arrays 'win' and 'lose'.*has \['win'\]"),
           ({**pairs, "lose": np.zeros((2, 1, 2))}, r"alike, got \[3, 1, 2\] and \[2, 1, 2\]"),
           ({**pairs, "class": np.zeros(2)}, r"one row for each of the 3 pairs, got \{'class': \[2\]\}"),
           ({**pairs, "win": np.full((3, 1, 2), np.nan)}, "must be finite")]
    for arrays, told in bad:
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(ValueError, match=f"bad.npz.*{told}"):
            read_pairs(tmp_path / "bad.npz")
    for content in (b"", b"not a zip"):
        (tmp_path / "empty.npz").write_bytes(content)
        with pytest.raises(ValueError, match="empty.npz is no .npz file of preference pairs"):
            read_pairs(tmp_path / "empty.npz")
    with pytest.raises(FileNotFoundError):
        read_pairs(tmp_path / "none.npz")
    nothing = Pairs(torch.zeros(0, 1, 2), torch.zeros(0, 1, 2), None, torch.zeros(0))
    with pytest.raises(ValueError, match="no preference pairs"):
        Preferences(nothing, batch=1)
    with pytest.raises(ValueError, match=r"1\.\.6 pairs .*got 7"):
        Preferences(Pairs(torch.zeros(6, 1, 2), torch.zeros(6, 1, 2), None, torch.ones(6)), batch=7)


# ---------------------------------------------------------------------------------------------- through the sampler

@pytest.mark.parametrize("order", [1, 2])
def test_backpropagation_through_the_sampler_samples_the_same(order) -> None:
    schedule, model = world()
    matrix, x = pyramid(schedule.grid(4), 2, 1), torch.randn(5, 2, 3)
    wanted = generate(model, schedule, matrix, x, order=order)
    weights = tuple(model.net.inner.parameters())
    grads = {}
    for last, checkpoint in ((5, True), (5, False), (1, True)):
        found = through(model, schedule, matrix, x, last=last, order=order, checkpoint=checkpoint)
        torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=1e-5)
        grads[last, checkpoint] = torch.autograd.grad(found.square().sum(), weights)[0]
    torch.testing.assert_close(grads[5, True], grads[5, False])
    assert not torch.allclose(grads[5, True], grads[1, True])
    for last in (0, 6):
        with pytest.raises(ValueError, match=rf"1\.\.5 steps of this matrix, got last={last}"):
            through(model, schedule, matrix, x, last=last)
    with pytest.raises(ValueError, match="differentiable reward.*without gradient.*policy_gradient"):
        from dforce.align import starts
        batch = starts(classes, 4, (2, 3))(0)
        AlignObjective(model, schedule, direct_reward(lambda x0, cond: torch.zeros(len(x0)), matrix))(batch)


def test_regression_weights_choose_the_samples() -> None:
    schedule, model = world()
    objective = AlignObjective(model, schedule, regression())
    batch = make(schedule, model, traces=False).draw(0)
    weight = torch.zeros(24, dtype=F64)
    weight[:4] = 6.0
    torch.manual_seed(0)
    one = torch.autograd.grad(objective(batch._replace(advantage=weight), torch.Generator().manual_seed(0))[0],
                              model.net.inner[0].weight)[0]
    spoilt = batch._replace(advantage=weight, x=torch.where(weight.view(-1, 1, 1) > 0, batch.x, 9.0))
    other = torch.autograd.grad(objective(spoilt, torch.Generator().manual_seed(0))[0], model.net.inner[0].weight)[0]
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
