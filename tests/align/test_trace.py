"""Traces: closed forms of what is recorded, replay equal to a step-at-a-time loop, and what is refused."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch

from dforce.align import (
    OffPolicyError,
    check_on_policy,
    cps,
    dance,
    flow_sde,
    kl,
    mismatch,
    record,
    refresh,
    replay,
    subsample,
    window,
)
from dforce.align.cells import cells_of
from dforce.core.denoiser import Precond
from dforce.core.matrix import full_sequence, pyramid
from dforce.core.noise import Noise
from dforce.core.sample import sample
from dforce.core.schedule import Schedule, cosine, flow, linear
from dforce.core.transition import transition
from dforce.core.tree import select
from dforce.guidance.energy import guided
from dforce.guidance.inpaint import inpaint
from dforce.guidance.wrapper import classifier_free
from tests.align_bed import Gaussian, Vectors, networks

SEEDED = {"noise": Noise(1)}


def start(batch=5, time=4, dim=3, dtype=torch.float32):
    return torch.randn(batch, time, dim, generator=torch.Generator().manual_seed(3), dtype=dtype)


def normal(x, mean, std):
    return torch.distributions.Normal(mean, std).log_prob(x).sum(-1)


# ------------------------------------------------------------------------------------------------ closed forms, float64

@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_log_prob_of_a_ddim_step_is_the_closed_form(eta) -> None:
    schedule = linear(1000)
    model = Gaussian(schedule, 0.4, 0.7, dim=3, dtype=torch.float64)
    trace = record(model, schedule, full_sequence(schedule.grid(6), 2), start(4, 2, dtype=torch.float64), eta=eta,
                   **SEEDED)
    assert trace.x.dtype == torch.float64
    for s in range(5):
        ab, ab_s = (schedule.alpha[int(trace.level[0, i, 0])] ** 2 for i in (s, s + 1))
        x = trace.x[:, s]
        x0, _ = model(x, trace.level[:, s], model.init_state(4))
        noise = (x - ab.sqrt() * x0) / (1 - ab).sqrt()
        std = eta * ((1 - ab_s) / (1 - ab) * (1 - ab / ab_s)).sqrt()                  # Song et al. 2021, eq. 16
        mean = ab_s.sqrt() * x0 + (1 - ab_s - std**2).sqrt() * noise                   # eq. 12
        torch.testing.assert_close(trace.log_prob[:, s], normal(trace.x[:, s + 1], mean, std), rtol=1e-9, atol=1e-9)
    assert (trace.log_prob[:, -1] == 0).all() and (trace.dims[:, -1] == 0).all()       # the step to level 0


def test_log_prob_of_a_ddpm_step_is_the_closed_form() -> None:
    schedule = linear(100)
    model = Gaussian(schedule, -0.2, 0.5, dim=3, dtype=torch.float64)
    matrix = torch.arange(100, 0, -1)[:, None].expand(-1, 2)
    trace = record(model, schedule, matrix, start(3, 2, dtype=torch.float64), **SEEDED)
    beta = 1 - (schedule.alpha[1:] / schedule.alpha[:-1]) ** 2
    for s in (0, 50, 98):
        t = int(trace.level[0, s, 0])
        ab, before, b = schedule.alpha[t] ** 2, schedule.alpha[t - 1] ** 2, beta[t - 1]
        x0, _ = model(trace.x[:, s], trace.level[:, s], model.init_state(3))
        mean = before.sqrt() * b / (1 - ab) * x0 + (1 - b).sqrt() * (1 - before) / (1 - ab) * trace.x[:, s]  # Ho, eq. 7
        std = ((1 - before) / (1 - ab) * b).sqrt()
        torch.testing.assert_close(trace.log_prob[:, s], normal(trace.x[:, s + 1], mean, std), rtol=1e-9, atol=1e-9)


def test_log_prob_of_a_flow_sde_step_is_the_closed_form() -> None:
    schedule = flow(1000)
    model = Gaussian(schedule, 0.4, 0.7, dim=3, dtype=torch.float64)
    trace = record(model, schedule, full_sequence(schedule.grid(8, "index"), 2), start(4, 2, dtype=torch.float64),
                   std=flow_sde(schedule, 0.7), **SEEDED)
    for s in range(1, 7):
        now, after = (float(schedule.sigma[int(trace.level[0, i, 0])]) for i in (s, s + 1))
        std = 0.7 * math.sqrt(now / (1 - now)) * math.sqrt(now - after)                 # Flow-GRPO's std
        std = min(std, after)                                                           # no more than what is left
        x = trace.x[:, s]
        x0, _ = model(x, trace.level[:, s], model.init_state(4))
        noise = (x - (1 - now) * x0) / now
        mean = (1 - after) * x0 + math.sqrt(after**2 - std**2) * noise
        torch.testing.assert_close(trace.log_prob[:, s], normal(trace.x[:, s + 1], mean, std), rtol=1e-8, atol=1e-8)
        # Their Euler mean, -velocity and drift as published, differs by what the docstring says
        velocity, dt, half = noise - x0, now - after, std**2 / (now - after) / (2 * now)
        euler = x * (1 - half * dt) - velocity * (1 + half * (1 - now)) * dt
        torch.testing.assert_close(euler, (1 - after) * x0 + (after - std**2 / (2 * now)) * noise)
        excess = (after - std**2 / (2 * now)) ** 2 + std**2 - after**2
        assert excess == pytest.approx(std**2 * (1 - after / now) + std**4 / (4 * now**2)) and excess > 0


@pytest.mark.parametrize("steps, ours, capped, published", [
    (10, 0.6866, 0.9563, 0.9313), (40, 0.9215, 1.0174, 0.9990), (200, 0.9844, 1.0179, 1.0086)])
def test_the_variance_that_a_flow_sde_leaves_of_a_normal_law(steps, ours, capped, published) -> None:
    """x0 ~ N(0, 1) and its exact posterior mean: all is linear, and the variance a recursion. The published step is
    Flow-GRPO's x - v dt - std^2 / (2 s) (x + (1 - s) v) + std noise, its first std, infinite by the formula, being the
    noise that is left (capped), or that of 1 - s after the step (published)."""
    schedule, left, kept = flow(1000), [1.0, 1.0, 1.0], 1.0
    for now, after in pairwise(torch.linspace(1000, 0, steps + 1).round().long().view(-1, 1, 1)):
        x, s, to = torch.ones(1, 1, 1).double(), float(schedule.sigma[now]), float(schedule.sigma[after])
        std = flow_sde(schedule)(now, after)
        x0 = x * (1 - s) / ((1 - s) ** 2 + s**2)
        kernel = transition(schedule, x, x0, now, after, std=std)
        left[0] = float(kernel.mean) ** 2 * left[0] + float(kernel.std) ** 2
        euler = transition(schedule, x, x0, now, after, std=flow_sde(schedule, published=True)(now, after))
        kept = float(euler.mean) ** 2 * kept + float(euler.std) ** 2
        velocity = float(x - x0) / s
        for i, first in enumerate((float(std), 0.7 * (s / (1 - to) * (s - to)) ** 0.5), 1):
            drawn = 0.7 * (s / (1 - s) * (s - to)) ** 0.5 if s < 1 else first
            mean = 1 - velocity * (s - to) - drawn**2 / (2 * s) * (1 + (1 - s) * velocity)
            left[i] = mean**2 * left[i] + drawn**2
    assert left == pytest.approx([ours, capped, published], abs=2e-4) and kept == pytest.approx(left[2], rel=1e-9)


@pytest.mark.parametrize("steps, shift, variance, left", [
    (10, 1, 1.0, 0.580), (10, 3, 1.0, 0.516), (40, 3, 1.0, 0.650), (10, 3, 0.25, 0.429)])
def test_the_variance_that_coefficients_preserving_steps_leave_of_a_normal_law(steps, shift, variance, left) -> None:
    """Of the true one, x0_hat being the exact posterior mean; numbers from a recursion in NumPy (Wang & Yu 2025)."""
    time = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    time = shift * time / (1 + (shift - 1) * time)
    schedule, kept = Schedule(1 - time.flip(0), time.flip(0)), 1.0
    for now, after in pairwise(torch.arange(steps, -1, -1).view(-1, 1, 1)):
        x, s = torch.ones(1, 1, 1).double(), float(schedule.sigma[now])
        x0 = x * (1 - s) * variance / ((1 - s) ** 2 * variance + s**2)
        kernel = transition(schedule, x, x0, now, after, std=cps(schedule)(now, after))
        kept = float(kernel.mean) ** 2 * kept + float(kernel.std) ** 2
    assert kept / variance == pytest.approx(left, abs=6e-4)


def test_a_step_of_coefficients_preserving_sampling_is_the_published_one_and_is_replayed() -> None:
    """(1 - s') x0 + s' cos(scale pi / 2) eps, std s' sin(scale pi / 2) (Wang & Yu 2025, algorithm 1)."""
    schedule = flow(1000)
    model = Gaussian(schedule, 0.4, 0.7, dim=3, dtype=torch.float64)
    trace = record(model, schedule, full_sequence(schedule.grid(6, "index"), 2), start(4, 2, dtype=torch.float64),
                   std=cps(schedule, 0.6), **SEEDED)
    for step in range(5):
        x, level = trace.x[:, step], trace.level[:, step]
        s, after = (float(schedule.sigma[int(trace.level[0, i, 0])]) for i in (step, step + 1))
        x0, angle = model(x, level, model.init_state(4))[0], 0.3 * math.pi
        mean = (1 - after) * x0 + after * math.cos(angle) * (x - (1 - s) * x0) / s
        wanted = normal(trace.x[:, step + 1], mean, after * math.sin(angle))
        torch.testing.assert_close(trace.log_prob[:, step], wanted, rtol=1e-8, atol=1e-8)
    assert mismatch(trace, model, schedule).largest < 1e-9 and not trace.euler.any()
    with pytest.raises(ValueError, match="lies in"):
        cps(schedule, 1.2)


@pytest.mark.parametrize("rule", [flow_sde, dance])
def test_a_published_step_is_recorded_and_replayed_by_its_own_density(rule) -> None:
    """The mean as published, x - v dt - std^2 / (2 s) (x + (1 - s) v), from the network's x0_hat; the last step too."""
    schedule = flow(1000)
    model = Gaussian(schedule, 0.4, 0.7, dim=3, dtype=torch.float64)
    how = rule(schedule, published=True)
    trace = record(model, schedule, full_sequence(schedule.grid(6, "index"), 2), start(4, 2, dtype=torch.float64),
                   std=how, **SEEDED)
    for step in range(6):
        x, level, to = trace.x[:, step], trace.level[:, step], trace.level[:, step + 1]
        s, after = (float(schedule.sigma[int(each[0, 0])]) for each in (level, to))
        velocity, std = (x - model(x, level, model.init_state(4))[0]) / s, float(how(level, to).std[0, 0])
        mean = x - velocity * (s - after) - std**2 / (2 * s) * (x + (1 - s) * velocity)
        wanted = normal(trace.x[:, step + 1], mean, std)
        torch.testing.assert_close(trace.log_prob[:, step], wanted, rtol=1e-8, atol=1e-8)
    assert (trace.dims == 3).all()
    for rows in (None, 3):
        assert mismatch(trace, model, schedule, rows=rows).largest < 1e-9
    cells = cells_of(trace, torch.tensor([3, 0]), torch.tensor([5, 2]))
    torch.testing.assert_close(replay(cells, model, schedule).log_prob[:, 0], trace.log_prob[[3, 0], [5, 2]])
    inside = window(how, schedule, 400, 600)(torch.tensor([[601, 600]]), torch.tensor([[300, 300]]))
    assert (inside.std > 0).tolist() == [[False, True]]
    with pytest.raises(ValueError, match="leave min_std out"):
        record(model, schedule, full_sequence(schedule.grid(6), 2), start(4, 2), std=how, min_std=0.1)


def test_other_rules_for_std() -> None:
    schedule = flow(100)
    level, to = torch.tensor([[100, 50]]), torch.tensor([[50, 0]])
    assert torch.equal(flow_sde(schedule)(level, to)[0], torch.tensor([0.5, 0.0], dtype=torch.float64))  # what is left
    torch.testing.assert_close(dance(schedule, 0.3)(level, to)[0, 0], torch.tensor(0.3 * 0.5**0.5, dtype=torch.float64))
    inside = window(dance(schedule), schedule, 40, 60)(torch.tensor([[61, 60, 40, 39]]), torch.tensor([[30] * 4]))
    assert (inside > 0).tolist() == [[False, True, True, False]]
    with pytest.raises(ValueError, match="window of levels lies in 0..100, got 60..40"):
        window(dance(schedule), schedule, 60, 40)
    with pytest.raises(ValueError, match="scale of the noise must be positive"):
        flow_sde(schedule, 0.0)


def test_min_std_gives_the_last_step_a_density() -> None:
    schedule = linear(100)
    model = Gaussian(schedule, 0.4, 0.7, dim=3)
    trace = record(model, schedule, full_sequence(schedule.grid(4), 2), start(4, 2), eta=0.0, min_std=0.1, **SEEDED)
    x0, _ = model(trace.x[:, -2], trace.level[:, -2], model.init_state(4))
    torch.testing.assert_close(trace.log_prob[:, -1].float(), normal(trace.x[:, -1], x0, 0.1))
    assert (trace.dims[:, :-1] == 0).all() and (trace.dims[:, -1] == 3).all()
    gradient, = torch.autograd.grad(replay(trace, model, schedule).log_prob.sum(), model.mean)
    torch.testing.assert_close(gradient, torch.autograd.grad(normal(trace.x[:, -1], x0, 0.1).sum(), model.mean)[0])


# ------------------------------------------------------------------------------------------------------------- replay

@pytest.mark.parametrize("name", ["recurrent", "transformer", "temporal", "image"])
@pytest.mark.parametrize("path", ["ddpm", "flow"])
def test_replay_is_the_loop_it_replaces(name, path) -> None:
    schedule = linear(100) if path == "ddpm" else flow(100)
    how = {"eta": 1.0} if path == "ddpm" else {"std": flow_sde(schedule)}
    model = networks(schedule, "v" if path == "ddpm" else "flow")[name].double()
    matrix, x = pyramid(schedule.grid(5), 4, 2), start(dtype=torch.float64)
    trace = record(model, schedule, matrix, x, **how, **SEEDED)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)                             # the policy has moved on

    found = replay(trace, model, schedule)
    loop, state = [], model.init_state(5)
    for s in range(trace.log_prob.shape[1]):
        level, to = trace.level[:, s], trace.level[:, s + 1]
        x0, _ = model(trace.x[:, s], level, state)
        std = how["std"](level, to) if "std" in how else None
        kernel = transition(schedule, trace.x[:, s], x0, level, to, eta=how.get("eta", 0.0), std=std)
        loop.append(kernel.log_prob(trace.x[:, s + 1]))
        torch.testing.assert_close(found.kernel.mean[:, s], kernel.mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.kernel.std[:, s], kernel.std, rtol=0, atol=1e-15)
    loop = torch.stack(loop, 1)
    assert not torch.allclose(loop, found.old, atol=1e-2)
    torch.testing.assert_close(found.log_prob, loop, rtol=1e-9, atol=1e-9)
    one, other = (torch.autograd.grad(value.sum(), tuple(model.parameters()), allow_unused=True)
                  for value in (found.log_prob, loop))
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    held = trace.level[:, :-1] == trace.level[:, 1:]
    assert (found.log_prob[held | (trace.level[:, 1:] == 0)] == 0).all()


def test_the_recorded_run_is_the_sampled_one() -> None:
    schedule = cosine(100)
    model, matrix, x = networks(schedule)["recurrent"], pyramid(schedule.grid(5), 4, 1), start()
    trace = record(model, schedule, matrix, x, **SEEDED)
    with torch.no_grad():
        steps = list(sample(model, schedule, matrix, x, eta=1.0, order=1, **SEEDED))
    assert torch.equal(trace.x[:, 1:], torch.stack([step.x for step in steps], 1)) and torch.equal(trace.x[:, 0], x)
    assert torch.equal(trace.level, matrix.expand(5, -1, -1))
    assert torch.equal(trace.std.float(), torch.stack([step.kernel.std[..., 0] for step in steps], 1))


@pytest.mark.parametrize("name", ["recurrent", "transformer", "temporal", "image"])
def test_the_ratio_is_one_on_policy_for_every_kind_of_model(name) -> None:
    schedule = cosine(100)
    model = networks(schedule)[name]
    trace = record(model, schedule, pyramid(schedule.grid(5), 4, 2), start(), **SEEDED)
    found = check_on_policy(trace, model, schedule)
    assert found.largest < 2e-3 and found.outside == 0 and found.cells == 5 * 4 * 4    # 5 runs, 4 tokens, 4 steps each


def test_chunks_checkpoints_and_chosen_steps_change_nothing() -> None:
    schedule = cosine(100)
    model = networks(schedule)["recurrent"]
    trace = record(model, schedule, pyramid(schedule.grid(5), 4, 1), start(), **SEEDED)
    whole = replay(trace, model, schedule)
    weights = tuple(model.parameters())
    wanted = torch.autograd.grad(whole.log_prob.sum(), weights)
    for how in ({"rows": 7}, {"checkpoint": True}, {"rows": 3, "checkpoint": True}):
        part = replay(trace, model, schedule, **how)
        torch.testing.assert_close(part.log_prob, whole.log_prob, rtol=0, atol=1e-4)
        for one, other in zip(torch.autograd.grad(part.log_prob.sum(), weights), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    some = torch.tensor([6, 0, 3])
    chosen = replay(trace, model, schedule, steps=some)
    torch.testing.assert_close(chosen.log_prob, whole.log_prob[:, some], rtol=0, atol=1e-4)
    assert torch.equal(chosen.old, trace.log_prob[:, some]) and torch.equal(chosen.dims, trace.dims[:, some])
    own = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7], [1, 6]])
    each = replay(trace, model, schedule, steps=own)
    torch.testing.assert_close(each.log_prob, whole.log_prob[torch.arange(5)[:, None], own], rtol=0, atol=1e-4)
    torch.testing.assert_close(each.kernel.mean, whole.kernel.mean[torch.arange(5)[:, None], own], rtol=0, atol=1e-5)


def test_permuting_the_batch_permutes_log_probs() -> None:
    schedule = cosine(100)
    model = networks(schedule)["image"]
    cond = {"static": {"class": torch.tensor([0, 1, 2, 1, 0])}}
    trace = record(model, schedule, pyramid(schedule.grid(5), 4, 1), start(), cond=cond, **SEEDED)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = select(trace, order)
    assert torch.equal(permuted.cond["static"]["class"], cond["static"]["class"][order])
    found, whole = (replay(part, model, schedule).log_prob for part in (permuted, trace))
    torch.testing.assert_close(found, whole[order], rtol=0, atol=1e-5)


def test_guidance_is_replayed_as_it_sampled() -> None:
    schedule = cosine(100)
    inner, cond = Precond(Vectors(3), schedule, "v"), {"static": {"class": torch.tensor([1, 2, 1, 2, 1])}}
    null = {"static": {"class": torch.zeros(1, dtype=torch.long)}}
    model = classifier_free(inner, 3.0, null)
    trace = record(model, schedule, full_sequence(schedule.grid(5), 4), start(), cond=cond, **SEEDED)
    assert check_on_policy(trace, model, schedule).largest < 2e-3
    replay(trace, model, schedule).log_prob.sum().backward()
    assert inner.net.inner[0].weight.grad.abs().sum() > 0
    for other in (inner, classifier_free(inner, 1.0, null), classifier_free(inner, 3.0)):  # what a train_cfg flag does
        with pytest.raises(ValueError, match="another model.*guidance or its scale"):
            replay(trace, other, schedule)


def test_learning_through_guidance_needs_a_differentiable_one() -> None:
    schedule = cosine(100)
    inner = Precond(Vectors(3), schedule, "v")

    def energy(x0):
        return -x0.square().sum((1, 2))

    model = guided(inner, schedule, energy, 0.1, differentiable=True)
    trace = record(model, schedule, full_sequence(schedule.grid(3), 4), start(), **SEEDED)
    replay(trace, model, schedule).log_prob.sum().backward()
    assert inner.net.inner[0].weight.grad.abs().sum() > 0
    plain = guided(inner, schedule, energy, 0.1)
    trace = record(plain, schedule, full_sequence(schedule.grid(3), 4), start(), **SEEDED)
    with pytest.raises(ValueError, match="differentiable=True"):
        replay(trace, plain, schedule)
    with torch.no_grad():
        torch.testing.assert_close(replay(trace, plain, schedule).log_prob, trace.log_prob, rtol=0, atol=1e-3)


def test_wrappers_that_hold_one_tensor_a_run_are_replayed_in_their_order() -> None:
    schedule = cosine(100)
    known, mask = start(5, 4), torch.zeros(5, 4, 3, dtype=torch.bool)
    mask[:, 0, :2] = True
    model = inpaint(networks(schedule)["image"], known, mask)
    trace = record(model, schedule, full_sequence(schedule.grid(5), 4), start(), **SEEDED)
    for rows in (None, 7, 11):                                                           # whole steps of the five runs
        assert check_on_policy(trace, model, schedule, rows=rows).largest < 2e-3
    swapped = inpaint(networks(schedule)["image"], known.flip(0), mask)
    with pytest.raises(ValueError, match="another model"):
        replay(trace, swapped, schedule)


def test_a_run_goes_on_from_the_latent_that_it_was_given() -> None:
    schedule = cosine(100)
    model = networks(schedule)["recurrent"]
    past = start(5, 6)
    state = model.absorb(past, torch.zeros(5, 6, dtype=torch.long), model.init_state(5))
    trace = record(model, schedule, full_sequence(schedule.grid(4), 4), start(), state=state, **SEEDED)
    torch.testing.assert_close(replay(trace, model, schedule).log_prob, trace.log_prob, rtol=0, atol=1e-3)
    fresh = replay(trace._replace(state=None), model, schedule).log_prob
    assert (fresh - trace.log_prob).abs().max() > 0.01
    gradient, = torch.autograd.grad(fresh.sum(), model.net.null)  # a run from the beginning also learns the beginning
    assert gradient.abs().sum() > 0


def test_padding_counts_nothing() -> None:
    schedule = linear(100)
    model = Gaussian(schedule, 0.3, 0.7, dim=3)
    mask = torch.ones(5, 4, 3, dtype=torch.bool)
    mask[:, 1::2, 2] = False
    mask[0, 3] = False
    args = (model, schedule, full_sequence(schedule.grid(4), 4), start())
    trace, whole = record(*args, mask=mask, **SEEDED), record(*args, **SEEDED)
    assert torch.equal(trace.dims[:, 0], mask.sum(2).float()) and (whole.dims[:, 0] == 3).all()
    found = replay(trace, model, schedule)
    torch.testing.assert_close(found.log_prob, trace.log_prob, rtol=0, atol=1e-4)
    kernel = found.kernel
    pieces = torch.distributions.Normal(kernel.mean[:, 0], kernel.std[:, 0]).log_prob(trace.x[:, 1])
    torch.testing.assert_close(found.log_prob[:, 0].float(), (pieces * mask).sum(-1), rtol=0, atol=1e-4)
    by_token = record(*args, mask=mask.any(2), **SEEDED)
    assert torch.equal(by_token.dims[:, 0], 3.0 * mask.any(2))


# ----------------------------------------------------------------------------------------------------------------- KL

def test_kl_of_every_step_is_that_of_torch_and_bounds_the_marginal() -> None:
    schedule = linear(1000)
    policy, reference = (Gaussian(schedule, mean, 1.0, dtype=torch.float64) for mean in (0.5, 0.0))
    trace = record(policy, schedule, full_sequence(schedule.grid(10), 1), start(64, 1, 1, torch.float64), min_std=0.05,
                   **SEEDED)
    found = kl(trace, policy, reference, schedule)
    before = replay(trace, reference, schedule)
    after = replay(trace, policy, schedule)
    wanted = torch.distributions.kl_divergence(
        *(torch.distributions.Normal(part.kernel.mean, part.kernel.std) for part in (after, before))).sum(-1)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(kl(trace, after, before, schedule), found, rtol=0, atol=0)
    # here the KL of a step does not depend on the state, so the bound of Lemma 4.2 can be checked exactly
    mean, var = [], []
    for model in (policy, reference):
        m, v = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        for s in range(10):
            level, to, std = trace.level[:1, s], trace.level[:1, s + 1], trace.std[:1, s]
            ends = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1)
            pair = [part.expand(2, 1) for part in (level, to, std)]
            x0, _ = model(ends, pair[0], model.init_state(2))
            out = transition(schedule, ends, x0, pair[0], pair[1], std=pair[2]).mean.flatten()
            m, v = out[0] + (out[1] - out[0]) * m, (out[1] - out[0]) ** 2 * v + std.flatten() ** 2
        mean.append(m.detach()), var.append(v.detach())
    marginal = float(torch.distributions.kl_divergence(*(torch.distributions.Normal(m, v.sqrt())
                                                         for m, v in zip(mean, var, strict=True))))
    path = float(found[0].detach().sum())
    assert 0 < marginal <= path + 1e-9 and found.std(0).max() < 1e-9


def test_kl_is_zero_at_the_start_and_teaches_the_policy_only() -> None:
    schedule = cosine(100)
    policy = networks(schedule)["recurrent"]
    reference = copy.deepcopy(policy)
    trace = record(policy, schedule, pyramid(schedule.grid(5), 4, 1), start(), **SEEDED)
    assert (kl(trace, policy, reference, schedule) == 0).all()
    with torch.no_grad():
        policy.net.head[-1].bias += 0.1
    nats = kl(trace, policy, reference, schedule, steps=torch.tensor([1, 2]))
    assert nats.shape == (5, 2, 4) and (nats[trace.dims[:, 1:3] > 0] > 0).all() and (nats >= 0).all()
    nats.sum().backward()
    assert policy.net.head[-1].bias.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in reference.parameters())
    with pytest.raises(ValueError, match="different steps"):
        kl(trace, replay(trace, policy, schedule, steps=torch.tensor([0])), reference, schedule)


# -------------------------------------------------------------------------------------------------------- on-policy

def test_off_policy_is_told_with_its_figure() -> None:
    schedule = cosine(100)
    model = networks(schedule)["recurrent"]
    trace = record(model, schedule, pyramid(schedule.grid(5), 4, 1), start(), **SEEDED)
    with torch.no_grad():
        model.net.head[-1].bias += 0.05
    ratio = (replay(trace, model, schedule).log_prob - trace.log_prob).exp()
    largest = float((ratio - 1).detach()[trace.dims > 0].abs().max())
    assert mismatch(trace, model, schedule).largest == pytest.approx(largest)
    with pytest.raises(OffPolicyError, match=r"up to [\d.e+]+ .*record a new trace.*guidance scales.*refresh"):
        check_on_policy(trace, model, schedule)
    with torch.no_grad():
        model.net.head[-1].bias.fill_(torch.nan)
    with pytest.raises(OffPolicyError, match="up to inf"):
        check_on_policy(trace, model, schedule)


def test_bfloat16_on_one_side_is_measured_and_refused() -> None:
    schedule = cosine(100)
    model = networks(schedule)["image"]
    args = model, schedule, full_sequence(schedule.grid(8), 4), start(32)
    trace = record(*args, **SEEDED)
    exact, rounded = (mismatch(trace, model, schedule, autocast=dtype) for dtype in (None, torch.bfloat16))
    assert exact.largest < 1e-3 < 0.01 < rounded.largest and exact.mean < rounded.mean
    with pytest.raises(OffPolicyError, match="the same dtype in record and replay"):
        check_on_policy(trace, model, schedule, autocast=torch.bfloat16)
    both = record(*args, autocast=torch.bfloat16, **SEEDED)
    assert both.x.dtype == torch.float32 and both.log_prob.dtype == torch.float64
    assert (both.x - both.x.bfloat16().float()).abs().max() > 0                          # states were never rounded
    with torch.autocast("cpu", dtype=torch.bfloat16):                                    # not the caller's context
        assert mismatch(trace, model, schedule).largest < 1e-3
        torch.testing.assert_close(record(*args, **SEEDED).x, trace.x, rtol=0, atol=0)


def test_refresh_takes_log_probs_anew() -> None:
    schedule = cosine(100)
    model = networks(schedule)["transformer"]
    trace = record(model, schedule, pyramid(schedule.grid(5), 4, 1), start(), **SEEDED)
    off = trace._replace(log_prob=trace.log_prob + 0.5 * (trace.dims > 0))
    with pytest.raises(OffPolicyError):
        check_on_policy(off, model, schedule)
    assert check_on_policy(refresh(off, model, schedule, rows=3), model, schedule, rows=3, tolerance=1e-9)


# ---------------------------------------------------------------------------------------------------------- refusals

def test_what_has_no_log_prob_is_refused() -> None:
    schedule = cosine(100)
    model, x = networks(schedule)["image"], start()
    matrix = full_sequence(schedule.grid(4), 4)
    with pytest.raises(ValueError, match="first order.*depends on the weights through the x0_hat that is remembered"):
        record(model, schedule, matrix, x, order=2)
    with pytest.raises(ValueError, match="no step of this run has a density.*eta=0.0"):
        record(model, schedule, matrix, x, eta=0.0)
    with pytest.raises(ValueError, match="min_std > 0"):
        record(model, schedule, full_sequence(schedule.grid(1), 4), x)


def test_a_trace_is_bound_to_its_model_but_not_to_its_weights() -> None:
    schedule = cosine(100)
    model = networks(schedule)["recurrent"]
    trace = record(model, schedule, pyramid(schedule.grid(3), 4, 1), start(), **SEEDED)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.net.null += 1
    replay(trace, moved, schedule)
    others = [(networks(schedule)["transformer"], schedule), (networks(schedule, "x0")["recurrent"], schedule),
              (model, linear(100))]
    for other, table in others:
        with pytest.raises(ValueError, match="recorded by another model"):
            replay(trace, other, table)
    half = trace._replace(model=torch.where(torch.arange(5) == 2, 0, trace.model))
    with pytest.raises(ValueError, match="recorded by another model"):
        replay(half, model, schedule)


def test_steps_out_of_range_are_refused() -> None:
    schedule = cosine(100)
    model = networks(schedule)["image"]
    trace = record(model, schedule, full_sequence(schedule.grid(3), 4), start(), **SEEDED)
    for steps, told in ((torch.tensor([3]), r"0\.\.2"), (torch.tensor([-1]), r"0\.\.2"), (torch.tensor([0.5]), "integ"),
                        (torch.zeros(4, 1, dtype=torch.long), "B = 5")):
        with pytest.raises(ValueError, match=told):
            replay(trace, model, schedule, steps=steps)


# -------------------------------------------------------------------------------------------------------- subsampling

def test_subsampled_steps_have_a_density_and_all_come_up() -> None:
    schedule = cosine(100)
    model = networks(schedule)["image"]
    trace = record(model, schedule, full_sequence(schedule.grid(9), 4), start(40), **SEEDED)
    generator = torch.Generator().manual_seed(0)
    steps = subsample(trace, 0.25, generator)
    assert steps.shape == (40, 2) and (steps.diff() > 0).all() and steps.max() < 8         # step 8 goes to level 0
    assert set(steps.flatten().tolist()) == set(range(8))
    assert torch.equal(subsample(trace, 1.0, generator), torch.arange(8).expand(40, -1))
    # the mean of the loss over random steps is the loss over all of them
    whole = trace.log_prob[:, :8].mean()
    drawn = torch.stack([trace.log_prob.gather(1, subsample(trace, 0.5, generator)[..., None].expand(-1, -1, 4)).mean()
                         for _ in range(200)])
    assert abs(float(drawn.mean() - whole)) < 4 * float(drawn.std()) / 200**0.5
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"\(0, 1\]"):
            subsample(trace, fraction)
