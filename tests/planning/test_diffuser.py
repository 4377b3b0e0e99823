"""Diffuser: a network trained with its goal shown clean knows the conditional law, and its plans end at the goal."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dforce.core.denoiser import Denoiser, Precond
from dforce.core.loss import corrupt, shared, uniform
from dforce.core.matrix import full_sequence
from dforce.core.noise import Noise, seed_of
from dforce.core.sample import generate, sample
from dforce.core.schedule import linear
from dforce.data.normalize import Affine
from dforce.guidance.inpaint import inpaint
from dforce.nets.recurrent import RecurrentNet
from dforce.nets.temporal import TemporalUNet
from dforce.planning.diffuser import DiffuserPlanner
from dforce.train.objectives import InpaintingObjective, final
from tests.gaussian_bed import NonCausal, ar1, covariance

S, T = linear(200), 6
LAST = partial(final, begin=-1)
AFFINE = Affine(torch.tensor([0.0, 0, 2, 3, 0.5, 0]), torch.tensor([0.7, 0.7, 0.9, 1.1, 2, 2]))
LAYOUT = {"stack": 4, "horizon": 32, "action": [0, 2], "observation": [2, 6]}
STARTS, GOALS = np.array([[1.0, 1, 0, 0.1], [2.0, 1, 0, 0], [3.0, 2, 0.1, 0]]), np.array([[1.0, 1], [3, 1], [2, 3]])


class Bridge(NonCausal):
    """E[x0 | noisy tokens, the last one clean]: what a network learns to which the last token is shown clean."""

    def __call__(self, x, level, state, cond=None):
        return super().__call__(x, torch.cat([level[:, :-1], torch.zeros_like(level[:, -1:])], 1), state, cond)


class Gain(nn.Module, Denoiser):
    """x0_hat = gain @ x at a single level: the linear denoiser."""

    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(gain)

    def init_state(self, batch, cond=None):
        return torch.zeros(batch, 0)

    def forward(self, x, level, state, cond=None):
        self.seen, self.out = x, torch.einsum("ts,bsd->btd", self.gain, x)
        self.out.retain_grad()
        return self.out, state


def batch_of(x, mask=None):
    return SimpleNamespace(x=x, mask=torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask, cond=None)


def at(level):
    return lambda schedule, shape, generator: torch.full(shape, level)


# -------------------------------------------------------------------------------------------------------- objective

def test_final():
    x = torch.zeros(2, 3, 24)
    assert final(x).sum() == 8 and final(x)[:, -1, 20:].all()
    assert final(x, end=-2).sum() == 4 and final(x, end=-2)[:, -1, 20:22].all()
    with pytest.raises(ValueError, match="begin=-4, end=-4 names none of the 24 numbers"):
        final(x, end=-4)


def test_shown_entries_are_clean_and_give_no_gradient():
    """The network sees the known entry as it is and all others noised; nothing that it says there matters."""
    x, seed = torch.randn(5, T, 1), 3
    objective = InpaintingObjective(Gain(torch.randn(T, T)), S, shown=LAST, levels=at(120))
    loss, logs = objective(batch_of(x), torch.Generator().manual_seed(seed))
    loss.backward()
    net = objective.denoiser
    noisy = corrupt(S, x, torch.full((5, T), 120), torch.Generator().manual_seed(seed))
    assert torch.equal(net.seen[:, :-1], noisy[:, :-1]) and torch.equal(net.seen[:, -1], x[:, -1])
    assert (net.out.grad[:, -1] == 0).all() and (net.out.grad[:, :-1] != 0).all()
    assert (net.gain.grad[-1] == 0).all() and logs["loss"] == loss


def test_its_minimum_is_the_conditional_mean():
    """On AR(1) the gradient vanishes at the gain of E[x0 | noisy tokens, clean end], and at no other."""
    level, n = 100, 100_000
    x = ar1(n, T, torch.Generator().manual_seed(0))
    eye = torch.eye(T)[..., None]
    norms = {}
    for exact in (Bridge, NonCausal):
        gain = exact(S, T)(eye, torch.full((T, T), level), None)[0][..., 0].T
        objective = InpaintingObjective(Gain(gain), S, shown=LAST, levels=at(level), weight=uniform())
        objective(batch_of(x), torch.Generator().manual_seed(1))[0].backward()
        norms[exact] = float(objective.denoiser.gain.grad.norm())
    assert norms[Bridge] < 0.01 and norms[NonCausal] > 10 * norms[Bridge]


def test_samples_have_the_conditional_law():
    """Replacement alone gives half of the pull (test_guidance); a network that was shown the end gives all of it."""
    n, end = 3000, 1.5
    known, mask = torch.zeros(T, 1), torch.zeros(T, 1, dtype=torch.bool)
    known[-1], mask[-1] = end, True
    noise = torch.randn(n, T, 1, generator=torch.Generator().manual_seed(0))
    out = generate(inpaint(Bridge(S, T), known, mask, show="clean"), S, full_sequence(S.grid(20), T), noise)
    cov = covariance(T)
    mean, left = cov[:-1, -1] * end, cov[:-1, :-1] - cov[:-1, -1:] * cov[-1:, :-1]
    torch.testing.assert_close(out[:, :-1, 0].mean(0).double(), mean, rtol=0, atol=0.04)
    torch.testing.assert_close(torch.cov(out[:, :-1, 0].T).double(), left, rtol=0, atol=0.05)
    assert (out[:, -1] == end).all()


def test_padding_counts_nothing_and_levels_are_shared_by_default():
    x = torch.randn(4, T, 1)
    mask = torch.ones(4, T, dtype=torch.bool)
    mask[:, 4:] = False
    objective = InpaintingObjective(Gain(torch.randn(T, T)), S, shown=LAST)
    assert objective.levels is shared
    objective(batch_of(x, mask), torch.Generator().manual_seed(0))[0].backward()
    assert (objective.denoiser.out.grad[:, 4:] == 0).all()


def test_windows_are_cut_to_all_lengths_behind():
    """Lengths are uniform between the shortest and the whole; what is shown is the end of what is left."""
    x = torch.randn(2, T, 1)
    objective = InpaintingObjective(Gain(torch.zeros(T, T)), S, shown=LAST, shortest=3)
    lengths = []
    for seed in range(400):
        seen = []
        objective.denoiser.forward = lambda x, *rest, seen=seen: (seen.append((x, rest[-1])), (x, None))[1]
        batch = batch_of(x)
        batch.cond = {"token": {"a": torch.arange(T).expand(2, T)}, "static": {}}
        objective(batch, torch.Generator().manual_seed(seed))
        (given, cond), = seen
        lengths.append(given.shape[1])
        assert torch.equal(given[:, -1], x[:, lengths[-1] - 1]) and cond["token"]["a"].shape[1] == lengths[-1]
    counts = torch.bincount(torch.tensor(lengths), minlength=T + 1)
    assert (counts[:3] == 0).all() and (counts[3:] > 60).all()
    with pytest.raises(ValueError, match="shortest=0"):
        InpaintingObjective(Gain(torch.zeros(T, T)), S, shortest=0)


def test_a_causal_network_is_refused():
    net = Precond(RecurrentNet((6,), width=8), S)
    with pytest.raises(ValueError, match="net=temporal"):
        InpaintingObjective(net, S)
    with pytest.raises(ValueError, match="net=temporal"):
        DiffuserPlanner(net, S, AFFINE, LAYOUT)


# ---------------------------------------------------------------------------------------------------------- planner

def planner(**settings):
    torch.manual_seed(0)
    net = TemporalUNet((24,), static={"start": 4}, width=8, multipliers=(1, 2))
    return DiffuserPlanner(Precond(net, S).requires_grad_(False), S, AFFINE, LAYOUT, **{"steps": 4, **settings})


def plan(remaining=50, seed=0, starts=STARTS, goals=GOALS, **settings):
    return planner(**settings)(starts, goals, remaining, np.random.default_rng(seed))


@pytest.mark.parametrize("settings", [{}, {"eta": 1.0, "order": 1}, {"scale": 0.5}, {"horizon": 10}])
def test_the_goal_is_kept_at_every_step(settings):
    """Each row's estimate has it, the network is shown it, and the finished plan ends there at rest."""
    made = planner(**settings)
    shown = []
    made.denoiser.net.register_forward_hook(lambda module, inputs, output: shown.append(inputs[0][:, -1, 20:]))
    steps = list(made.denoising(STARTS, GOALS, 50))
    goal = AFFINE.part(2, 6).normalize(torch.tensor(np.hstack([GOALS, 0 * GOALS]), dtype=torch.float32))
    assert len(steps) == 4 == len(shown)
    assert all(torch.equal(entries, goal) for entries in shown)
    assert all(torch.equal(step.x0[:, -1, 20:], goal) for step, _ in steps)
    np.testing.assert_allclose(steps[-1][1][:, -1, 2:], np.hstack([GOALS, 0 * GOALS]), atol=1e-6)


def test_plans_end_at_the_goal_and_stay_there():
    found = plan(50)
    assert found.states.shape == (3, 50, 4) and found.actions.shape == (3, 50, 2)
    np.testing.assert_allclose(found.states[:, 31:, :2], np.repeat(GOALS[:, None], 19, 1), atol=1e-6)
    np.testing.assert_allclose(found.states[:, 31:, 2:], 0, atol=1e-6)
    assert (found.actions[:, 32:] == 0).all() and (found.actions[:, :32] != 0).all()


def test_only_the_position_is_known_without_rest():
    found = plan(50, rest=False)
    np.testing.assert_allclose(found.states[:, 31, :2], GOALS, atol=1e-6)
    assert (np.abs(found.states[:, 31, 2:]) > 1e-3).all()
    assert (found.states[:, 32:, 2:] == 0).all()  # behind the plan it stays all the same


def test_lengths():
    """Fixed, rounded up to whole tokens; or so that all plans of an episode end together."""
    assert plan(20).states.shape[1] == 32                        # what it was trained on, though less is asked for
    assert plan(20, horizon=17).states.shape[1] == 20
    made = planner(horizon=30, episode=50, least=8)
    assert [made.length(left) for left in (50, 40, 28, 27, 10)] == [30, 20, 8, 8, 8]
    assert planner(horizon=6, episode=50, least=8).length(10) == 6
    with pytest.raises(ValueError, match="horizon=0, least=32"):
        planner(horizon=0)


def test_plans_follow_the_generator_and_their_own_start_and_goal():
    assert np.array_equal(plan(seed=1).states, plan(seed=1).states)
    assert not np.allclose(plan(seed=1).states, plan(seed=2).states)
    one_by_one = plan(episodes=1)
    assert one_by_one.states.shape == plan().states.shape
    np.testing.assert_allclose(one_by_one.states[:, 31, :2], GOALS, atol=1e-6)
    other = STARTS.copy()
    other[1, 0] += 1
    changed = (plan().states != plan(starts=other).states).any((1, 2))
    assert changed.tolist() == [False, True, False]


def test_it_is_full_sequence_sampling_of_the_inpainted_network():
    """The same noise through `sample`, one level for all tokens, gives the same plan."""
    seed = seed_of(int(np.random.default_rng(0).integers(2**62)), 0)
    *_, (last, physical) = planner().denoising(STARTS, GOALS, 50, seed=seed)
    assert last.level.unique(dim=1).shape[1] == 1
    np.testing.assert_allclose(plan(seed=0).states[:, :32], physical[..., 2:], atol=1e-5)
    noise = Noise(seed)(-1, torch.arange(8), torch.empty(3, 8, 24))
    start = AFFINE.part(2, 6).normalize(torch.tensor(STARTS, dtype=torch.float32))
    net, known = planner().denoiser, planner().known(GOALS, 8)
    *_, step = sample(inpaint(net, *known, show="clean"), S, full_sequence(S.grid(4), 8), noise,
                      cond={"static": {"start": start}})
    torch.testing.assert_close(step.x, last.x)
