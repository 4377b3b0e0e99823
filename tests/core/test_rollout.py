"""Endless rollouts: a carried state, noise of its own for each chunk, stabilisation, and what is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dforce.core.denoiser import Denoiser
from dforce.core.matrix import pyramid
from dforce.core.noise import Noise
from dforce.core.rollout import rollout
from dforce.core.schedule import linear
from tests.core.test_sample import GRID, E, S, network
from tests.gaussian_bed import Causal, NonCausal


def chunks(denoiser, matrix, count, schedule=S, batch=2, **options):
    run = rollout(denoiser, schedule, matrix, denoiser.init_state(batch), E, batch=batch, **options)
    return [chunk for chunk, _ in itertools.islice(run, count)]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_rollout_is_generate_from_the_carried_state(eta):
    denoiser = network().float()
    noise, matrix = Noise(4), pyramid(GRID, 3, 2)
    run = rollout(denoiser, S, matrix, denoiser.init_state(2), E, batch=2, eta=eta, noise=noise)
    (first, state), (second, after) = next(run), next(run)
    assert first.shape == (2, 3, *E) and not torch.equal(first, second)
    zeros = torch.zeros(2, 3, dtype=torch.long)
    by_hand = denoiser.absorb(first, zeros, denoiser.init_state(2))
    torch.testing.assert_close(state["z"], by_hand["z"])
    torch.testing.assert_close(after["z"], denoiser.absorb(second, zeros, state)["z"])
    assert torch.equal(first, chunks(denoiser, matrix, 1, eta=eta, noise=noise)[0])
    assert not torch.equal(first, chunks(denoiser, matrix, 1, eta=eta, noise=Noise(5))[0])


def test_rollout_chunks_have_noise_of_their_own():
    class Still(Causal):
        """Ignores what it sees: chunks differ by their noise alone."""

        def __call__(self, x, level, state, cond=None):
            return torch.zeros_like(x), state

    matrix = torch.tensor([[40, 40], [1, 1], [0, 0]])  # a last step from level 1: x0; look at the tokens before it
    seen = []

    class Spy(Still):
        def __call__(self, x, level, state, cond=None):
            if (level == 40).all():
                seen.append(x.clone())
            return super().__call__(x, level, state, cond)

    chunks(Spy(S), matrix, 6, batch=500)
    values = torch.stack([v.flatten() for v in seen[:6]])
    assert len(values.flatten().unique()) > 0.99 * values.numel() and abs(float(values.std()) - 1) < 0.05
    assert (torch.corrcoef(values) - torch.eye(len(values))).abs().max() < 0.15


def test_rollout_stabilises():
    """`stabilise_std` tells the network that finished tokens carry noise; mode 'noise' also makes it true."""
    denoiser = network().float()
    matrix, std = pyramid(GRID, 3, 2), 0.1
    level = S.nearest(std)
    assert level > 0
    levels = torch.full((2, 3), level)
    run = rollout(denoiser, S, matrix, denoiser.init_state(2), E, batch=2, stabilise_std=std)
    x, state = next(run)
    torch.testing.assert_close(state["z"], denoiser.absorb(x, levels, denoiser.init_state(2))["z"])
    y, noisy = next(rollout(denoiser, S, matrix, denoiser.init_state(2), E, batch=2, stabilise_std=std, mode="noise"))
    assert torch.equal(x, y) and not torch.equal(noisy["z"], state["z"])
    assert torch.equal(chunks(denoiser, matrix, 2, stabilise_std=0.0)[1], chunks(denoiser, matrix, 2)[1])


def test_rollout_refuses():
    with pytest.raises(ValueError, match="takes a causal denoiser"):
        next(rollout(NonCausal(S, 3), S, pyramid(GRID, 3), torch.zeros(1, 0), (1,), batch=1))
    with pytest.raises(ValueError, match="mode must be 'label' or 'noise', got 'both'"):
        next(rollout(network(), S, pyramid(GRID, 3), None, E, batch=1, mode="both"))
    with pytest.raises(ValueError, match="last row must be clean"):
        next(rollout(network(), S, pyramid(GRID, 3)[:-1], None, E, batch=1))


def test_rollout_goes_on_from_any_state_it_yielded():
    denoiser, matrix, options = network().float(), pyramid(GRID, 3, 2), {"eta": 1.0, "stabilise_std": 0.1,
                                                                         "mode": "noise", "noise": Noise(3)}
    for refresh in (None, (4, 5)):
        run = rollout(denoiser, S, matrix, denoiser.init_state(2), E, batch=2, refresh=refresh, **options)
        all_of_it = list(itertools.islice(run, 6))
        state = all_of_it[2][1]
        rest = rollout(denoiser, S, matrix, state, E, batch=2, refresh=refresh, first=3, **options)
        for (wanted, _), (got, _) in zip(all_of_it[3:], rest, strict=False):
            assert torch.equal(wanted, got)


def test_rollout_feeds_each_chunk_its_own_conditioning_when_its_turn_comes():
    denoiser, matrix = network(token={"a": 2}).float(), pyramid(GRID, 3, 2)
    asked = []

    def cond(chunk):
        asked.append(chunk)
        return {"token": {"a": torch.full((2, 3, 2), float(chunk))}}

    run = rollout(denoiser, S, matrix, denoiser.init_state(2), E, batch=2, cond=cond)
    first, state = next(run)
    assert asked == [0]
    by_hand = denoiser.absorb(first, torch.zeros(2, 3, dtype=torch.long), denoiser.init_state(2), cond(0))
    torch.testing.assert_close(state["z"], by_hand["z"])
    second = next(run)[0]
    constant = rollout(denoiser, S, matrix, state, E, batch=2, cond=cond(1), first=1)
    assert torch.equal(second, next(constant)[0])
    assert not torch.equal(second, next(rollout(denoiser, S, matrix, state, E, batch=2, cond=cond(0), first=1))[0])


def test_refresh_builds_the_state_from_the_last_tokens():
    """Every 4 tokens, chunks of 2: after chunks 2, 4, ... the state is that of a sequence of the last 3 tokens."""
    denoiser, matrix, std = network(token={"a": 2}).float(), pyramid(GRID, 2, 1), 0.1
    level = S.nearest(std)

    def cond(chunk):
        return {"token": {"a": torch.full((2, 2, 2), 0.3 * chunk)}}

    run = rollout(denoiser, S, matrix, denoiser.init_state(2), E, batch=2, cond=cond, stabilise_std=std,
                  refresh=(4, 3))
    chunks_, states = zip(*itertools.islice(run, 4), strict=True)
    levels = torch.full((2, 2), level)
    plain = denoiser.absorb(chunks_[0], levels, denoiser.init_state(2), cond(0))
    torch.testing.assert_close(states[0].state["z"], plain["z"])               # not due yet
    last = torch.cat([chunks_[2], chunks_[3]], 1)[:, -3:]
    given = {"token": {"a": torch.cat([cond(2)["token"]["a"], cond(3)["token"]["a"]], 1)[:, -3:]}}
    assert torch.equal(states[3].x, last) and torch.equal(states[3].token["a"], given["token"]["a"])
    anew = denoiser.absorb(last, torch.full((2, 3), level), denoiser.init_state(2), given)
    torch.testing.assert_close(states[3].state["z"], anew["z"])
    whole = rollout(denoiser, S, matrix, denoiser.init_state(2), E, batch=2, cond=cond, stabilise_std=std)
    unrefreshed = [x for x, _ in itertools.islice(whole, 3)]
    assert torch.equal(unrefreshed[1], chunks_[1]) and not torch.equal(unrefreshed[2], chunks_[2])
    with pytest.raises(ValueError, match="refresh is"):
        next(rollout(denoiser, S, matrix, denoiser.init_state(2), E, batch=2, refresh=(4, 0)))


@pytest.mark.parametrize("steps", [1, 4])
def test_a_token_costs_its_steps_and_one_look_back(steps):
    denoiser, calls = network().float(), []

    class Counted(Denoiser):
        causal = recurrent = True
        init_state = denoiser.init_state

        def absorb(self, *args):
            calls.append("absorb")
            return denoiser.absorb(*args)

        def __call__(self, *args):
            calls.append("denoise")
            return denoiser(*args)

    for _ in zip(range(3), rollout(Counted(), S, pyramid(S.grid(steps), 1), denoiser.init_state(2), E, batch=2),
                 strict=False):
        pass
    assert calls == (["denoise"] * steps + ["absorb"]) * 3


@pytest.mark.parametrize("kind, shape, value, message", [
    ("static", (2, 3), math.nan, "not finite"), ("token", (2, 4, 1), math.inf, "not finite"),
    ("token", (2, 3, 1), 0.0, r"must begin with \[2, 4\], got \[2, 3, 1\]"), ("static", (3,), 0.0, r"with \[2\]")])
def test_conditioning_that_cannot_be_is_refused(kind, shape, value, message):
    schedule, cond = linear(20), {kind: {"name": torch.full(shape, value)}}
    denoiser, matrix = Causal(schedule), pyramid(schedule.grid(2), 4, 1)
    for given in (cond, lambda chunk: cond):
        with pytest.raises(ValueError, match=message):
            next(rollout(denoiser, schedule, matrix, denoiser.init_state(2), (1,), batch=2, cond=given))
