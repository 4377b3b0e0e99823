"""A process of known law, learnt from draws and rolled out far beyond the training length: scripts/studies/laws/ar1.py,
short.

The full form (3 seeds, 20,000 steps) takes most of an hour; its figures are in docs/laws.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from dforce.core.loss import even_log_snr
from dforce.core.schedule import linear
from tests.gaussian_bed import RHO, Causal, ar1

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "studies" / "laws"))
import learn as learning
from figures import INNOVATION, TRUE, figures, interval, joint, moments, rolled
from learn import learn


def gru(width):
    return {"_target_": "dforce.nets.recurrent.RecurrentNet", "width": width}


def law(denoiser, *, steps=20, order=2, tokens=64, batch=512):
    """lag-1 correlation, innovation std and std of the second half of a rollout."""
    x = rolled(denoiser, denoiser.schedule, steps=steps, order=order, eta=0.0, tokens=tokens, batch=batch, seed=0)
    return dict(zip(TRUE, figures(moments(x[:, tokens // 2:])).tolist(), strict=True))


def off(found):
    """Relative errors of those figures that are not 0."""
    return {name: found[name] / true - 1 for name, true in TRUE.items() if true}


# --------------------------------------------------------------------------------------------------- the yardsticks

def test_figures_of_the_process_itself():
    x = ar1(4000, 100, torch.Generator().manual_seed(0))[..., 0]
    for found, wanted in zip(figures(moments(x)), TRUE.values(), strict=True):
        assert abs(found - wanted) < 0.02  # of the mean the standard error is .007
    assert abs(INNOVATION - 0.43589) < 1e-5
    assert figures(moments(2 * x))[1:] == pytest.approx(2 * figures(moments(x))[1:])


@pytest.mark.slow
def test_the_interval_holds_the_truth_and_shrinks_with_sequences():
    x = ar1(1200, 100, torch.Generator().manual_seed(1))[..., 0]
    seeds = [moments(part) for part in x.chunk(3)]
    low, high = interval(seeds)
    assert (low < list(TRUE.values())).all() and (high > list(TRUE.values())).all()
    few = interval([seed[:25] for seed in seeds])
    assert ((few[1] - few[0]) > 2 * (high - low)).all()
    shifted = [seeds[0], seeds[1], moments(1.5 * x[:400])]  # a seed that differs widens it
    assert (interval(shifted)[1] - interval(shifted)[0])[2] > 3 * (high - low)[2]


def test_a_mean_of_its_own_is_no_spread():
    """Three networks of the right std but different means: pooled, they would look too wide."""
    x = ar1(1200, 100, torch.Generator().manual_seed(2))[..., 0]
    seeds = [moments(part + shift) for part, shift in zip(x.chunk(3), (-0.5, 0.0, 0.5), strict=True)]
    low, high = interval(seeds)
    assert low[2] < 1 < high[2] and high[2] < 1.05
    assert [figures(seed)[3] for seed in seeds] == pytest.approx([-0.5, 0, 0.5], abs=0.03)


def test_joint_figures_of_the_exact_denoiser():
    """Those of test_laws, from the function that judges networks."""
    schedule = linear(1000)
    right, wrong = (joint(Causal(schedule), schedule, steps=20, delay=delay, batch=100) for delay in (10, 0))
    assert right["largest covariance error"] < 0.1 and abs(right["innovation std"] - INNOVATION) < 0.02
    assert abs(wrong["largest covariance error"] - 0.47) < 0.05 and abs(wrong["std at the last token"] - 0.83) < 0.03
    assert right["largest mean error"] < 1e-3


def test_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """A run killed after its checkpoint of step 4 ends in the weights of one that was left alone."""
    options = {"seed": 0, "steps": 8, "horizon": 4, "precision": "fp32"}
    whole = learn(tmp_path / "whole", gru(8), **options)
    monkeypatch.setattr(learning, "SAVE_EVERY", 4)
    monkeypatch.setattr(learning, "keep_last", killed := Killed())
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "parts", gru(8), **options)
    monkeypatch.setattr(learning, "keep_last", lambda *_: None)
    parts, again = (learn(tmp_path / "parts", gru(8), **options) for _ in range(2))  # goes on; is only loaded
    assert killed.calls == 1
    for a, b, c in zip(whole.parameters(), parts.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)


class Killed:
    """Stands where old checkpoints are deleted, and stops the run there."""

    calls = 0

    def __call__(self, *_):
        self.calls += 1
        raise KeyboardInterrupt


# ------------------------------------------------------------------------------------------------- learnt, and kept

def even_shared(schedule, shape, generator=None):
    """`even` levels, one a sequence: the baseline of full-sequence diffusion."""
    return even_log_snr(schedule, (shape[0], 1), generator).expand(shape)


@pytest.mark.slow
def test_learnt_and_kept_in_short(tmp_path):
    """1,000 steps of a GRU of width 32 on 16 tokens, 64 rolled out: lag-1 within .03, innovation std within 8%, std
    within 12%. First order beside it loses variance; trained with one level a sequence, so that a clean past never
    comes with a noisy present, the same network learns another law."""
    options = {"seed": 0, "steps": 1000, "horizon": 16, "lr": 8e-3, "precision": "fp32"}
    denoiser = learn(tmp_path / "own", gru(32), levels=even_log_snr, **options)
    second, first = law(denoiser), law(denoiser, order=1)
    shared = law(learn(tmp_path / "shared", gru(32), levels=even_shared, **options))
    error = off(second)
    assert abs(second["lag-1"] - RHO) < 0.03 and abs(error["innovation std"]) < 0.08 and abs(error["std"]) < 0.12
    assert first["std"] < second["std"] - 0.08 and off(first)["innovation std"] < -0.08
    assert abs(shared["lag-1"] - RHO) > 0.06


@pytest.mark.slow
def test_learnt_and_kept(tmp_path):
    """4,000 steps of width 64 on 32 tokens, 640 rolled out: lag-1 within .015, innovation std within 5%, std within
    10%; first order loses more than that."""
    denoiser = learn(tmp_path, gru(64), seed=0, steps=4000, levels=even_log_snr)
    second, first = law(denoiser, tokens=640, batch=128), law(denoiser, order=1, tokens=640, batch=128)
    print(second, first)
    error = off(second)
    assert abs(second["lag-1"] - RHO) < 0.015 and abs(error["innovation std"]) < 0.05 and abs(error["std"]) < 0.1
    assert first["std"] < second["std"] - 0.08 and off(first)["innovation std"] < -0.08
