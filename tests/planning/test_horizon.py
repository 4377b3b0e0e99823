"""Plans of other lengths than the training's: any horizon, and padding of pure noise behind the plan."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.matrix import checked_matrix, pyramid
from dforce.core.noise import Noise
from dforce.core.sample import generate
from dforce.core.schedule import linear
from dforce.data.normalize import Affine
from dforce.guidance.energy import guided
from dforce.guidance.inpaint import padded
from dforce.guidance.monte_carlo import monte_carlo
from dforce.nets.recurrent import RecurrentNet
from dforce.nets.transformer import TransformerNet
from dforce.planning.planner import DiffusionPlanner
from tests.gaussian_bed import Causal, NonCausal

S, KEPT, ALL = linear(200), 5, 12
LAYOUT = {"stack": 10, "action": [0, 2], "observation": [2, 6]}


def with_padding(matrix, tokens):
    """The matrix with `tokens` more columns, that stay at pure noise to the end."""
    return torch.cat([matrix, torch.full((len(matrix), tokens), S.levels)], 1)


def noise_of(batch=3, tokens=ALL, dim=1, seed=0):
    return Noise(seed)(-1, torch.arange(tokens), torch.empty(batch, tokens, dim))


def planner(net, **settings):
    torch.manual_seed(0)
    net = net((60,), static={"start": 4}, width=16)
    denoiser = Precond(net, S).requires_grad_(False)
    return DiffusionPlanner(denoiser, S, Affine(torch.zeros(6), torch.ones(6)), LAYOUT, steps=4, **settings)


def seen(event_shape, **options):
    return TransformerNet(event_shape, depth=1, heads=2, causal=False, **options)


def plan(planner, steps, seed=0):
    start, goal = np.array([[1.0, 1, 0, 0], [2.0, 1, 0, 0]]), np.ones((2, 2))
    return planner(start, goal, steps, np.random.default_rng(seed)).states


# ---------------------------------------------------------------------------------------------------------- padding

def test_a_padded_matrix_is_valid_but_not_complete():
    short = pyramid(S.grid(6), KEPT, 2)
    checked_matrix(short, S.levels, horizon=KEPT)
    checked_matrix(with_padding(short, 7), S.levels, horizon=ALL, complete=False)
    with pytest.raises(ValueError, match="clean"):
        checked_matrix(with_padding(short, 7), S.levels)


@pytest.mark.parametrize("delay", [0, 2, 6])
def test_padding_changes_nothing_for_a_causal_denoiser_and_something_for_others(delay):
    x, short = noise_of(), pyramid(S.grid(6), KEPT, delay)
    long = with_padding(short, ALL - KEPT)
    kept = generate(Causal(S), S, short, x[:, :KEPT], path="double_loop")
    whole = generate(Causal(S), S, long, x)
    torch.testing.assert_close(whole[:, :KEPT], kept, rtol=0, atol=0)
    torch.testing.assert_close(whole[:, KEPT:], x[:, KEPT:], rtol=0, atol=0)  # and is itself left alone
    kept = generate(NonCausal(S, KEPT), S, short, x[:, :KEPT])
    whole = generate(NonCausal(S, ALL), S, long, x)
    # The prior of the AR(1) bed is the same for both; what differs is how little pure noise still tells: alpha_K > 0.
    assert (whole[:, :KEPT] - kept).abs().max() > 1e-6


@pytest.mark.parametrize("delay", [0, 2])
def test_padded_is_the_matrix_whose_last_columns_stay_noise(delay):
    x, short = noise_of(), pyramid(S.grid(6), KEPT, delay)
    denoiser = NonCausal(S, ALL)
    whole = generate(denoiser, S, with_padding(short, ALL - KEPT), x)
    kept = generate(padded(denoiser, S, x[:, KEPT:]), S, short, x[:, :KEPT])
    torch.testing.assert_close(kept, whole[:, :KEPT], rtol=0, atol=0)


def test_guidance_goes_to_the_kept_tokens_only():
    x, short = noise_of(), pyramid(S.grid(6), KEPT, 0)
    around = padded(NonCausal(S, ALL), S, x[:, KEPT:])
    asked = []

    def energy(x0):
        asked.append(x0.shape)
        return -(x0[:, -1, 0] - 1).square()

    plain = generate(guided(around, S, energy), S, short, x[:, :KEPT])
    of_whole = guided(NonCausal(S, ALL), S, lambda x0: energy(x0[:, :KEPT]))
    same = generate(of_whole, S, with_padding(short, ALL - KEPT), x)
    torch.testing.assert_close(plain, same[:, :KEPT], rtol=0, atol=1e-6)
    tree = generate(monte_carlo(around, S, energy, 4, reduce="mean"), S, short, x[:, :KEPT])
    assert set(asked) == {(3, KEPT, 1), (9, KEPT, 1)} and tree.isfinite().all()


def test_a_causal_denoiser_is_not_padded():
    with pytest.raises(ValueError, match="as it is"):
        padded(Causal(S), S, noise_of())


# ---------------------------------------------------------------------------------------------------------- planner

@pytest.mark.parametrize("net", [RecurrentNet, seen])
@pytest.mark.parametrize("steps, tokens", [(1, 1), (150, 15), (295, 30), (600, 60)])
@pytest.mark.quick(3)
def test_any_horizon_whatever_is_asked_for(net, steps, tokens):
    plans = [plan(planner(net, scale=0.1), steps), plan(planner(net, scale=0.1, horizon=steps), 40)]
    assert plans[0].shape == (2, tokens * 10, 4)
    np.testing.assert_array_equal(*plans)
    assert planner(net, horizon=steps).variant["horizon"] == steps


def test_a_shorter_plan_is_the_beginning_of_a_longer_one_only_if_the_network_is_causal():
    short, long = (plan(planner(RecurrentNet, scale=0.0, horizon=h), 1) for h in (50, 120))
    np.testing.assert_allclose(long[:, :50], short, atol=1e-5)
    short, long = (plan(planner(seen, scale=0.0, delay=0, horizon=h), 1) for h in (50, 120))
    assert np.abs(long[:, :50] - short).max() > 1e-3


@pytest.mark.parametrize("draws", [1, 3])
def test_the_planner_pads_what_is_shorter_than_the_training(draws):
    for net, changes in ((seen, True), (RecurrentNet, False)):
        bare, behind = (plan(planner(net, delay=0, draws=draws, horizon=50, pad_to=p), 1) for p in (0, 120))
        assert behind.shape == bare.shape == (2, 50, 4)
        assert (np.abs(bare - behind).max() > 1e-3) == changes
        assert planner(net, pad_to=120).variant["pad_to"] == 120
    np.testing.assert_array_equal(*(plan(planner(seen, horizon=120, pad_to=p), 1) for p in (0, 120)))


@pytest.mark.parametrize("bad", [{"horizon": 0}, {"pad_to": -1}])
def test_bad_lengths_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        planner(RecurrentNet, **bad)
