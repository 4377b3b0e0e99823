"""What a policy with memory remembers, and what its tokens mean, on tasks and networks whose answers are known."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import dforce
from dforce.core.denoiser import Precond
from dforce.core.noise import no_noise
from dforce.core.tree import leaves, reset, select
from dforce.data.normalize import Affine
from dforce.nets.recurrent import RecurrentNet
from dforce.nets.transformer import TransformerNet
from dforce.policy.demonstration import NearestDemonstration
from dforce.policy.evaluation import run_policy
from dforce.policy.expectation import expected_observations
from dforce.policy.forcing import ForcingPolicy
from tests.cue import CHUNK, LAYOUT, STEPS, Cue, Exact, answers, demonstrations

SCHEDULE = dforce.linear(1000)
MIXED = {**LAYOUT, "tokens": {"parts": {"eye": 4, "joint": 2}, "action": 2, "chunk": 3}}
NORMAL = Affine([0.5, -1, 0, 2, 0.1, 0.2, 1, -1], [1, 2, 0.5, 1, 3, 1, 2, 0.5])
NETS = {"recurrent": functools.partial(RecurrentNet, width=16),
        "transformer": functools.partial(TransformerNet, width=16, depth=2, heads=2, context=12)}


def exact(**how):
    layout = {**LAYOUT, **how.pop("layout", {})}
    return ForcingPolicy(Exact(SCHEDULE, anywhere=layout["window"] is not None), SCHEDULE, Affine.identity(4), layout,
                         **how)


@functools.cache
def denoiser(net, static=False):
    torch.manual_seed(0)
    return Precond(NETS[net]((6,), token={"kind": 3}, static={"first": 6} if static else None), SCHEDULE, "x0")


def mixed(net="recurrent", layout=MIXED, **how):
    return ForcingPolicy(denoiser(net, layout["first"]), SCHEDULE, NORMAL, layout, **how)


def seen(time, rows=3):
    rng = np.random.default_rng(time)
    return {"joint": rng.normal(size=(rows, 2)), "eye": rng.normal(size=(rows, 2, 2))}


def some(observation, rows):
    return {name: value[rows] for name, value in observation.items()}


def played(policy, steps=4, rows=3, **how):
    """Actions [steps, N, C, A] of a policy, and its last state."""
    state, actions = policy.reset(rows), []
    for time in range(steps):
        action, state = policy.act(seen(time, rows), state, **{name: each(time) for name, each in how.items()})
        actions.append(action)
    return np.stack(actions), state


def test_the_cue_is_remembered_by_the_state_and_forgotten_by_a_window():
    assert answers(exact()) == 1.0
    assert 0.25 < answers(exact(layout={"window": 1})) < 0.75
    assert 0.25 < answers(exact(layout={"window": 2})) < 0.75
    assert answers(exact(layout={"window": STEPS // CHUNK})) == 1.0  # a window over the whole episode forgets nothing


def test_what_is_missing_or_not_finite_is_absorbed_as_if_it_had_never_been_seen():
    policy, observation = exact(), np.array([[1.0, 0, 0.1], [-1.0, 0, 0.2], [1.0, 0, 0.3]])
    _, blind = policy.act(observation, policy.reset(3), missing=np.ones(3, bool))
    torch.testing.assert_close(blind["memory"][:, :2].softmax(1), torch.full((3, 2), 0.5), atol=0.05, rtol=0)
    observation[1] = np.nan
    _, state = policy.act(observation, policy.reset(3))
    assert state["memory"][:, :2].softmax(1)[[0, 2], 0].min() > 0.999
    torch.testing.assert_close(state["memory"][1, :2].softmax(0), torch.full((2,), 0.5), atol=0.05, rtol=0)
    assert answers(policy, missing=np.ones(40, bool)) < 0.8 and answers(policy) == 1


def test_noise_that_the_network_is_told_of_is_trusted_less():
    told, untold = exact(sensor_std=1.0), exact()
    observation = np.array([[0.3, 0.0, 0.0]])  # a cue of 1 that reads .3
    odds = [policy.act(observation, policy.reset(1))[1]["memory"][0, 0].exp() for policy in (told, untold)]
    assert abs(odds[0] - 1 / (1 + np.exp(-0.6))) < 0.05 and odds[1] > 0.999  # odds of exp(.6)


@pytest.mark.parametrize("net", NETS)
def test_act_is_generate_after_the_same_tokens(net):
    """The state, and a transformer's cache, hold what the tokens say: the plan is that of the whole sequence."""
    policy, rows, empty = mixed(net), 3, torch.zeros(3, 1, 6)
    state, x, levels, kinds = policy.reset(rows), [], [], []
    for time in range(3):
        blank = np.array([False, time == 1, False])
        before = state
        actions, state = policy.act(seen(time), state, missing={"eye": blank})
        if time:
            x.append(policy.tokens.action_token(before["plan"], torch.full((rows,), 3)))
            levels.append(torch.zeros(rows, dtype=torch.long))
            kinds.append(2)
        shown = NORMAL.part(0, 6).normalize(torch.cat([torch.tensor(seen(time)[name]).float().view(rows, -1)
                                                       for name in ("eye", "joint")], 1))
        for place, columns in enumerate((slice(0, 4), slice(4, 6))):
            gone = torch.tensor(blank & (place == 0))
            noise = policy._noise(empty, {**state, "clock": torch.full((rows,), time)}, place, 2)[:, 0]
            x.append(torch.where(gone[:, None], noise, policy.tokens.padded(shown[:, columns])))
            levels.append(torch.where(gone, 1000, 0))
            kinds.append(place)
    start = policy._noise(empty, {**state, "clock": torch.full((rows,), 2)}, 2, 1)
    tokens, level = torch.cat([torch.stack(x, 1), start], 1), torch.stack([*levels, levels[0]], 1)
    grid = SCHEDULE.grid(4)
    matrix = torch.cat([level[None, :, :-1].expand(5, -1, -1), grid[:, None, None].expand(-1, rows, 1)], 2)
    kind = torch.nn.functional.one_hot(torch.tensor([*kinds, 2]), 3).float().expand(rows, -1, -1)
    for path in ("double_loop", "rows"):
        out = dforce.generate(denoiser(net), SCHEDULE, matrix, tokens, cond={"token": {"kind": kind}}, path=path)
        plan = NORMAL.part(6, 8).denormalize(out[:, -1].view(rows, 3, 2))
        torch.testing.assert_close(torch.tensor(actions), plan, atol=2e-5, rtol=2e-5)


def test_executing_whole_chunks_is_the_plain_rollout():
    """Where the world does what the network expects, the policy does what the network dreams."""
    layout = {**MIXED, "tokens": {"parts": {"eye": 4}, "action": 2, "chunk": 3}}
    torch.manual_seed(0)
    net = Precond(RecurrentNet((6,), token={"kind": 2}, width=16), SCHEDULE, "x0")
    policy = ForcingPolicy(net, SCHEDULE, Affine.identity(6), layout)
    policy.noise = no_noise
    kind = {"token": {"kind": torch.eye(2)[None]}}
    matrix = dforce.autoregressive(SCHEDULE.grid(4), 2)
    dreams = dforce.rollout(net, SCHEDULE, matrix, net.init_state(1), (6,), batch=1, cond=kind, noise=no_noise)
    state = policy.reset(1)
    for _ in range(4):
        tokens, _ = next(dreams)
        actions, state = policy.act(tokens[:, 0, :4].numpy(), state)
        if _ == 0:  # a dream does not put zeros where there is padding, so beyond the first step they would part
            np.testing.assert_allclose(actions[0].ravel(), tokens[0, 1].numpy(), atol=1e-6)


@pytest.mark.parametrize("layout", [{}, {"window": 2}, {"first": True}, {"cut": 0.3}], ids=str)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.quick(3)
def test_a_row_does_alone_what_it_does_in_a_batch(net, layout):
    policy = mixed(net, {**MIXED, **layout})
    count = {"executed": lambda time: np.array([1, 3, 2])} if layout.get("cut") else {}
    together, state = played(policy, missing=lambda time: np.array([False, time == 2, False]), **count)
    for row in range(3):
        alone, action = policy.reset(1), None
        for time in range(4):
            action, alone = policy.act(some(seen(time), [row]), alone, missing=np.array([row == 1 and time == 2]),
                                       **{name: each(time)[[row]] for name, each in count.items()})
            np.testing.assert_allclose(action[0], together[time, row], atol=2e-5)
        for a, b in zip(leaves(alone), leaves(state), strict=True):
            torch.testing.assert_close(a[0], b[row], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("layout", [{}, {"window": 2}, {"first": True}], ids=str)
def test_a_row_begins_anew_while_the_others_go_on(layout):
    policy = mixed(layout={**MIXED, **layout})
    _, state = played(policy, 2)
    begun = reset(state, policy.reset(3), torch.tensor([False, True, False]))
    actions, _ = policy.act(seen(2), begun)
    np.testing.assert_allclose(actions[1], policy.act(seen(2), policy.reset(3))[0][1], atol=1e-5)
    np.testing.assert_allclose(actions[[0, 2]], policy.act(seen(2), state)[0][[0, 2]], atol=1e-5)
    kept, _ = policy.act(some(seen(2), [2, 0]), select(state, torch.tensor([2, 0])))
    np.testing.assert_allclose(kept, actions[[2, 0]], atol=1e-5)


def test_what_is_absorbed_is_what_was_executed():
    """Where training had shorter chunks: those actions, and no more; else, and where there were none: noise."""
    cut, whole = mixed(layout={**MIXED, "cut": 0.3}), mixed()
    _, state = cut.act(seen(0), cut.reset(3))
    other = {**state, "plan": state["plan"] + torch.tensor([0.0, 0, 5])[:, None]}  # beyond the second action
    two = np.full(3, 2)
    same = [cut.act(seen(1), each, executed=two)[0] for each in (state, other)]
    np.testing.assert_array_equal(*same)
    assert np.abs(cut.act(seen(1), state)[0] - same[0]).max() > 1e-4
    none = [whole.act(seen(1), each, executed=two)[0] for each in (state, other)]
    np.testing.assert_array_equal(*none)
    np.testing.assert_array_equal(none[0], whole.act(seen(1), state, executed=np.zeros(3, int))[0])
    assert cut.act(seen(1), state)[0].shape == (3, 3, 2) and mixed(
        layout={**MIXED, "cut": 0.3}, execute=1).act(seen(0), state)[0].shape == (3, 1, 2)


def test_a_warm_start_stays_near_the_plan_before():
    policy = mixed(layout={**MIXED, "cut": 0.3}, execute=1, warm_std=0.0)
    _, state = policy.act(seen(0), policy.reset(3))
    _, after = policy.act(seen(1), state)
    torch.testing.assert_close(after["plan"], state["plan"][:, [1, 2, 2]])  # without noise nothing is left to denoise
    loose = mixed(layout={**MIXED, "cut": 0.3}, execute=1, warm_std=0.5)
    assert (loose.act(seen(1), state)[1]["plan"] - after["plan"]).abs().max() > 1e-3
    first = [each.act(seen(0), each.reset(3))[0] for each in (policy, loose)]
    np.testing.assert_array_equal(*first)  # at the beginning there is no plan


def test_an_energy_over_actions_in_physical_units_tilts_the_plan():
    """Of two ends that are equally likely, since no cue was seen, the one with the larger energy is planned."""
    def last(policy, rows=60):
        state = policy.reset(rows)
        for time in range(STEPS // CHUNK):
            observation = np.random.default_rng(time).normal(size=(rows, 3))
            actions, state = policy.act(observation, state, missing=np.ones(rows, bool))
        return actions[:, 0, 0]

    def policy(**how):  # actions are twice as large as the network has them
        return ForcingPolicy(Exact(SCHEDULE), SCHEDULE, Affine([0] * 4, [1, 1, 1, 2]), LAYOUT, steps=10, **how)

    plain = last(policy())
    np.testing.assert_allclose(np.abs(plain), 2, atol=0.1)
    assert 0.3 < (plain > 0).mean() < 0.7
    for sign in (1, -1):
        tilted = last(policy(energy=lambda actions, sign=sign: sign * actions.sum((1, 2))))
        assert (sign * tilted > 0).mean() > 0.85
    np.testing.assert_array_equal(plain, last(policy(energy=lambda actions: 0 * actions.sum((1, 2)))))


def test_a_regression_is_the_estimate_at_pure_noise_and_remembers_no_actions():
    policy = mixed(regression=True)
    actions, state = policy.act(seen(0), policy.reset(3))
    kind = {"token": {"kind": torch.tensor([0.0, 0, 1]).expand(3, 1, 3)}}
    with torch.no_grad():
        estimate, _ = denoiser("recurrent")(torch.zeros(3, 1, 6), torch.full((3, 1), 1000), state["memory"], kind)
    torch.testing.assert_close(torch.tensor(actions), NORMAL.part(6, 8).denormalize(estimate.view(3, 3, 2)))
    other = {**state, "plan": state["plan"] + 1}
    np.testing.assert_array_equal(policy.act(seen(1), state)[0], policy.act(seen(1), other)[0])


def test_episodes_are_played_in_chunks_and_the_nearest_demonstration_is_repeated():
    alone, pairs = (run_policy(exact(), Cue, 6, seed=7, copies=copies) for copies in (1, 4))
    assert alone == pairs and all(episode.total == STEPS for episode in alone)
    replay = NearestDemonstration(demonstrations(30), chunk=3)  # 3 does not divide an episode: it ends within a chunk
    for copies in (1, 8):
        assert [episode.total for episode in run_policy(replay, Cue, 6, seed=7, copies=copies)] == [STEPS] * 6


def test_input_that_cannot_be_is_refused():
    policy = mixed()
    state = policy.reset(3)
    for observation in (np.zeros((3, 6)), {"eye": np.zeros((3, 4))}, some(seen(0), [0]),
                        {**seen(0), "ear": np.zeros(3)}):
        with pytest.raises(ValueError, match="wanted are observations of 3 episodes"):
            policy.act(observation, state)
    for wrong, message in (({"missing": np.zeros(2, bool)}, "missing is"), ({"missing": {"ear": np.zeros(3, bool)}},
                           "missing is"), ({"executed": np.full(3, 4)}, "executed is"), ({"executed": np.ones(3)},
                           "executed is")):
        with pytest.raises(ValueError, match=message):
            policy.act(seen(0), state, **wrong)
    for execute in (0, 2, 4):
        with pytest.raises(ValueError, match="this policy plans 3 actions"):
            mixed(execute=execute)


def test_a_policy_expects_what_its_world_will_show():
    """Of the cue task the future is known: the cue is hidden, time goes on, the last number is drawn anew."""
    rng, policy = np.random.default_rng(0), exact(steps=16)
    cues = np.stack([rng.integers(0, 2, 80) * 2.0 - 1, np.zeros(80), 0.1 * rng.normal(size=80)], 1)
    _, state = policy.act(cues, policy.reset(80))
    memory = state["memory"].clone()
    future = expected_observations(policy, state, 3)
    assert future.shape == (3, 80, 3) and torch.equal(state["memory"], memory)
    np.testing.assert_allclose(future[..., 0], 0, atol=0.01)
    np.testing.assert_allclose(future[..., 1], np.arange(1, 4)[:, None].repeat(80, 1) * CHUNK / STEPS, atol=0.01)
    assert abs(future[..., 2].std() - 0.1) < 0.02
    with pytest.raises(ValueError, match="regresses actions"):
        expected_observations(exact(regression=True), state, 1)
