"""Policies that plan further than they act: when they plan, what they sample, and how plans are averaged."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from dforce.core.denoiser import Precond
from dforce.core.schedule import cosine
from dforce.core.tree import leaves, reset, select
from dforce.data.normalize import Affine
from dforce.nets.policy_unet import PolicyUNet
from dforce.policy.imitation import Imitation, Receding
from dforce.policy.receding import RecedingPolicy

TOKENS = {"parts": {"eye": 3, "joint": 2}, "action": 2, "chunk": 4}
LAYOUT = {"tokens": TOKENS, "window": None, "first": False, "cut": 0, "stride": 1, "past": 1}
NORMAL = Affine([0.5, -1, 0, 2, 0.1, 1, -1], [1, 2, 0.5, 1, 3, 2, 0.5])
SCHEDULE = cosine(100)


@functools.cache
def denoiser(predict="x0", **how):
    torch.manual_seed(0)
    net = PolicyUNet((8,), tokens=TOKENS, token={"kind": 3}, width=32, multipliers=(1, 1), **how)
    return Precond(net, SCHEDULE, predict)


def policy(net=None, layout=LAYOUT, **how):
    return RecedingPolicy(net or denoiser(), SCHEDULE, NORMAL, layout, **how)


def seen(time, rows=3):
    rng = np.random.default_rng(time)
    return {"joint": rng.normal(size=(rows, 2)), "eye": rng.normal(size=(rows, 3))}


def some(observation, rows):
    return {name: value[rows] for name, value in observation.items()}


def played(each, steps=6, rows=3, **how):
    """Actions [steps, N, C, A] of a policy, and its last state."""
    state, actions = each.reset(rows), []
    for time in range(steps):
        action, state = each.act(seen(time, rows), state, **{name: value(time) for name, value in how.items()})
        actions.append(action)
    return np.stack(actions), state


def plans(steps=6, rows=3, net=None, first=0, **how):
    """The plan [N, chunk - past, A] that would be made at each observation, physical."""
    every = policy(net, {**LAYOUT, **how.pop("layout", {})}, execute=1, **how)
    state, made = every.reset(rows), []
    for time in range(steps):
        _, state = every.act(seen(time, rows), state)
        made.append(every.of_action.denormalize(state["plan"]).numpy()[:, every.past:])
    return made


def test_a_plan_is_followed_and_then_made_anew():
    made = plans()
    for execute in (1, 2, 3):
        actions, _ = played(policy(execute=execute))
        for time in range(6):
            np.testing.assert_allclose(actions[time, :, 0], made[time - time % execute][:, time % execute], atol=1e-6)
    whole, _ = played(policy())
    np.testing.assert_array_equal(whole, actions)                              # all three that come after
    half, _ = played(policy(layout={**LAYOUT, "stride": 2, "past": 0}, execute=4), steps=2)
    assert half.shape == (2, 3, 2, 2)
    delayed, _ = played(policy(execute=3), steps=3, executed=lambda time: np.array([0, 1, 1]))
    np.testing.assert_allclose(delayed[:, 0, 0], np.stack([made[0][0, 0]] * 3), atol=1e-6)  # nothing was done of it


@pytest.mark.parametrize("window", [None, 2])
def test_what_is_planned_is_what_training_denoises(window):
    """A regression acts on what the same network says of a sequence as it is trained on."""
    net = denoiser(observations=3, heads=2)
    each = policy(net, {**LAYOUT, "window": window}, steps=1, regression=True)
    state, tokens, empty = each.reset(3), [], torch.zeros(3, 8)
    for time in range(4):
        actions, state = each.act(seen(time), state)
        shown = NORMAL.part(0, 5).normalize(torch.cat([torch.tensor(seen(time)[name]).float() for name in
                                                       ("eye", "joint")], 1))
        tokens += [each.tokens.padded(shown[:, :3]), each.tokens.padded(shown[:, 3:]), empty]
    x, level = torch.stack(tokens, 1), torch.tensor([0, 0, 100] * 4).expand(3, -1)
    kept = slice(None) if window is None else [6, 7, 9, 10, 11]  # the last observations, and one action token
    x, level = x[:, kept], level[:, kept]
    cond = {"token": {"kind": torch.eye(3).repeat(4, 1).expand(3, -1, -1)[:, kept]}}
    with torch.no_grad():
        plan, _ = net(x, level, net.init_state(3, cond), cond)
    torch.testing.assert_close(state["plan"].flatten(1), plan[:, -1], atol=1e-5, rtol=1e-5)


def test_sampling_is_ddim_as_diffusers_has_it():
    """Clipped, from the same noise, at the levels of "trailing" spacing; 100 levels of squaredcos_cap_v2."""
    net = denoiser("eps")
    each = policy(net, steps=10, order=1, spacing="index", clip=1.0)
    torch.testing.assert_close(SCHEDULE.alpha[1:].square(), DDIMScheduler(
        100, beta_schedule="squaredcos_cap_v2").alphas_cumprod.double(), atol=1e-6, rtol=1e-4)
    _, state = each.act(seen(0), each.reset(3))
    other = DDIMScheduler(100, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", clip_sample=True)
    other.set_timesteps(10)
    before = each._begin(torch.zeros(3, 5), state["stream"], each.reset(3))
    x = each._noise(torch.zeros(3, 1, 8), {**before, "clock": torch.zeros(3, dtype=torch.long)}, 2, 1)
    cond, label = {"token": {"kind": torch.tensor([0.0, 0, 1]).expand(3, 1, 3)}}, SCHEDULE.label.float()
    with torch.no_grad():
        for t in other.timesteps:
            eps, _ = net.net(x, label[t + 1].expand(3, 1), state["memory"], cond)
            x = other.step(eps, t, x, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(state["plan"].flatten(1), x[:, 0], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("w", [0.0, 0.5])
def test_an_ensemble_weighs_the_plans_by_their_age(w):
    """Zhao et al. (2023), section IV-A: weights exp(-w i), of the oldest, i = 0, to the newest."""
    made, (actions, _) = plans(), played(policy(ensemble=w))
    for time in range(6):
        votes = [(made[then][:, time - then]) for then in range(max(0, time - 2), time + 1)]
        weights = np.exp(-w * np.arange(len(votes)))
        expected = np.tensordot(weights / weights.sum(), np.stack(votes), 1)
        np.testing.assert_allclose(actions[time, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize("how", [{"execute": 2}, {"ensemble": 0.1}, {"lost": "last"}], ids=str)
def test_a_row_does_alone_what_it_does_in_a_batch_and_begins_anew_alone(how):
    each = policy(**how)
    together, state = played(each, missing=lambda time: np.array([False, time == 2, False]))
    for row in range(3):
        alone = each.reset(1)
        for time in range(6):
            action, alone = each.act(some(seen(time), [row]), alone, missing=np.array([row == 1 and time == 2]))
            np.testing.assert_allclose(action[0], together[time, row], atol=2e-5)
        for a, b in zip(leaves(alone), leaves(state), strict=True):
            torch.testing.assert_close(a[0], b[row], atol=2e-5, rtol=2e-5)
    begun = reset(state, each.reset(3), torch.tensor([False, True, False]))
    actions, _ = each.act(seen(6), begun)
    np.testing.assert_allclose(actions[1], each.act(seen(6), each.reset(3))[0][1], atol=1e-5)
    np.testing.assert_allclose(actions[[0, 2]], each.act(seen(6), state)[0][[0, 2]], atol=1e-5)
    kept, _ = each.act(some(seen(6), [2, 0]), select(state, torch.tensor([2, 0])))
    np.testing.assert_allclose(kept, actions[[2, 0]], atol=1e-5)


def test_a_lost_observation_is_the_last_one_or_noise():
    """Last seen: as if the same were seen again. Noise: another part of it counts, the lost part does not."""
    again = policy(execute=1, lost="last")
    _, state = again.act(seen(0), again.reset(3))
    blank = {"eye": np.ones(3, bool)}
    mixed = {"eye": seen(0)["eye"], "joint": seen(1)["joint"]}
    np.testing.assert_allclose(again.act(seen(1), state, missing=blank)[0], again.act(mixed, state)[0], atol=1e-6)
    unseen = {"eye": np.full((3, 3), np.nan), "joint": seen(1)["joint"]}
    np.testing.assert_allclose(again.act(unseen, state)[0], again.act(mixed, state)[0], atol=1e-6)
    noise = policy(execute=1)
    other = {"eye": seen(5)["eye"], "joint": seen(1)["joint"]}
    first = noise.act(seen(1), state, missing=blank)[0]
    np.testing.assert_array_equal(first, noise.act(other, state, missing=blank)[0])
    assert np.abs(first - noise.act(seen(1), state)[0]).max() > 1e-3


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"execute": 4}, {"execute": 0}, {"ensemble": 0.1, "execute": 2}, {"warm_std": 0.1}):
        with pytest.raises(ValueError, match="takes 1..3|leave it out"):
            policy(**wrong)


def test_settings_reach_the_data_and_the_policy():
    how = Imitation("x", window=2, steps=9, receding=Receding(stride=1, execute=8, past=1, clip=1.0, lost="last"))
    assert how.sequences == {"window": 2, "first": False, "hold": 0, "cut": 0.0, "limits": False, "stride": 1,
                             "past": 1}
    assert how.acting == {"steps": 9, "regression": False, "execute": 8, "order": 2, "spacing": "log_snr", "clip": 1.0,
                          "ensemble": None, "lost": "last"}
