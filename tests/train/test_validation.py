"""Errors by noise at validation: closed forms of a process whose law is known, padding, states, and the picture."""

from __future__ import annotations

import math

import pytest
import torch

from dforce.core.noise import Noise
from dforce.core.schedule import linear
from dforce.data import Batch
from dforce.report.plots.curves import denoising_curves
from dforce.train.objectives import ForcingObjective
from dforce.train.validation import STDS, held_out_error
from tests.gaussian_bed import RHO, Causal, NonCausal, ar1, covariance

S, TIME = linear(1000), 6


def batch(rows: int = 20_000) -> Batch:
    x = ar1(rows, TIME, torch.Generator().manual_seed(0))
    return Batch(x, torch.ones(x.shape[:2], dtype=torch.bool), {}, torch.ones(rows, dtype=torch.bool))


def ratio(std: float) -> float:
    """Noise over signal of the level that is taken for `std`."""
    level = S.nearest(std)
    return float(S.sigma[level] / S.alpha[level])


def test_the_exact_causal_denoiser_errs_as_the_posterior_after_a_clean_past_does():
    found = held_out_error(Causal(S), S, batch(), rows=20_000)
    left = 1 - RHO**2  # variance of a token, given the one before it
    assert list(found) == [*(f"{std:g}" for std in STDS), "pure", "kept"]
    for std in STDS:
        noise = ratio(std) ** 2
        assert float(found[f"{std:g}"]) == pytest.approx(math.sqrt(left * noise / (left + noise)), rel=0.02)
    assert float(found["pure"]) == pytest.approx(math.sqrt(left), rel=0.02)
    assert float(found["kept"]) == pytest.approx(math.sqrt(2 * (1 - RHO)), rel=0.02)


def test_one_that_is_not_causal_sees_all_tokens_alike_noisy():
    found = held_out_error(NonCausal(S, TIME), S, batch(), rows=20_000)
    noise = ratio(0.5) ** 2
    posterior = torch.linalg.inv(torch.linalg.inv(covariance(TIME)) + torch.eye(TIME, dtype=torch.float64) / noise)
    assert float(found["0.5"]) == pytest.approx(float(posterior.diagonal().mean().sqrt()), rel=0.02)
    assert "kept" not in found


def test_padding_after_the_last_token_changes_nothing():
    short = batch(64)
    ended = short._replace(x=short.x[:, :4], mask=short.mask[:, :4])
    spoilt = short._replace(x=torch.where(torch.arange(TIME)[:, None] < 4, short.x, 99.0),
                            mask=torch.arange(TIME).expand(64, -1) < 4)
    empty = torch.cat([spoilt.mask, torch.zeros(8, TIME, dtype=torch.bool)])  # rows of padding alone
    more = spoilt._replace(x=torch.cat([spoilt.x, torch.full((8, TIME, 1), 99.0)]), mask=empty)
    known, *others = (held_out_error(Causal(S), S, each, rows=99) for each in (ended, spoilt, more))
    for other in others:
        assert {name: float(value) for name, value in other.items()} == pytest.approx(
            {name: float(value) for name, value in known.items()}, rel=1e-5)


def test_it_begins_in_the_state_that_it_is_given_and_under_the_noise():
    whole = batch(64)
    state = Causal(S).absorb(whole.x[:, :3], torch.zeros(64, 3, dtype=torch.long), Causal(S).init_state(64))
    later = whole._replace(x=whole.x[:, 3:4], mask=whole.mask[:, 3:4])
    told = held_out_error(Causal(S), S, later, rows=64, state=state)
    assert "kept" not in told  # there is no token before it in the window
    assert float(told["pure"]) < float(held_out_error(Causal(S), S, later, rows=64)["pure"])
    assert told == held_out_error(Causal(S), S, later, rows=64, state=state)
    assert told != held_out_error(Causal(S), S, later, rows=64, state=state, noise=Noise(1))


def test_an_objective_logs_them_when_it_is_judged_only():
    class Learnt(torch.nn.Module, Causal):
        def __init__(self):
            torch.nn.Module.__init__(self)
            Causal.__init__(self, S)

        __call__ = Causal.__call__

    objective = ForcingObjective(Learnt(), S)
    assert not any(name.startswith("error_") for name in objective(batch(8))[1])
    logs = objective.eval()(batch(8), torch.Generator().manual_seed(5))[1]
    wanted = held_out_error(Causal(S), S, batch(8), rows=2, noise=Noise(5))
    assert {name: logs[f"error_{name}"] for name in wanted} == wanted


def test_the_picture_shows_every_validation_and_what_is_to_be_beaten():
    errors = {100: {"0.1": 0.09, "pure": 0.8, "kept": 0.5}, 200: {"0.1": 0.05, "pure": None, "kept": 0.5}}
    ax = denoising_curves(errors).axes[0]
    assert [line.get_label() for line in ax.lines] == ["step 100", "step 200", "the noise itself",
                                                       "the token before, kept"]
    assert ax.lines[0].get_ydata().tolist() == [0.09, 0.8] and math.isnan(ax.lines[1].get_ydata()[1])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.1", "pure noise"]
    with pytest.raises(ValueError, match="at least one validation"):
        denoising_curves({})
