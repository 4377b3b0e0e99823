"""States carried from window to window, and what accidents may do to a run: nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.schedule import linear
from dforce.data import Batch
from dforce.nets.recurrent import RecurrentNet
from dforce.nets.temporal import TemporalUNet
from dforce.nets.transformer import TransformerNet
from dforce.train.fit import fit
from dforce.train.objectives import ForcingObjective
from tests.train.test_distributed import environment
from tests.train.test_fit import PLAIN, assert_same

ROOT = Path(__file__).resolve().parents[2]

WINDOW, ROWS, EPISODE = 2, 64, 10  # tokens, rows, windows an episode
HIDDEN = 0.8                      # variance of what an episode keeps; the rest, of unit variance in all, is noise


def episodes(rows: int, seed: int) -> torch.Tensor:
    """x_t = h + noise, h drawn once an episode: [rows, EPISODE, WINDOW, 1]."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, EPISODE, WINDOW, 1, generator=draw)
    return HIDDEN**0.5 * torch.randn(rows, 1, 1, 1, generator=draw) + (1 - HIDDEN) ** 0.5 * noise


def forecast_error(known: int) -> float:
    """Bayes' mean squared error of the next token after `known` ones: noise, and what they leave open about h."""
    return (1 - HIDDEN) * (1 + HIDDEN / (1 - HIDDEN + HIDDEN * known))


DATA = episodes(40 * ROWS, 7).view(40, ROWS, EPISODE, WINDOW, 1)


def batch_at(step: int, *, shards: tuple[int, int] = (0, 4)) -> Batch:
    """Row b goes through its episodes window by window, beginning at window b modulo EPISODE."""
    own = torch.arange(ROWS)[shards[0] * 16 : shards[1] * 16]
    at = own + step
    x = DATA[at // EPISODE % 40, own, at % EPISODE]
    first = at % EPISODE == 0 if step else torch.ones(len(own), dtype=torch.bool)
    return Batch(x, torch.ones(x.shape[:2], dtype=torch.bool), {}, first)


def objective(carry: bool, net: type = RecurrentNet, **size: int) -> ForcingObjective:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        schedule = linear(20)
        return ForcingObjective(Precond(net((1,), **({"width": 32} | size)), schedule), schedule, carry=carry)


def error_at_the_end(carry: bool) -> float:
    """Mean squared x0 error of an episode's last token from pure noise, all before it being known, after training."""
    *_, log = fit(objective(carry), batch_at, **PLAIN | {"steps": 1000, "ema": 0.99})
    x = episodes(3000, 1).flatten(1, 2)
    with torch.no_grad(), log.training.averaged() as model:
        past = x[:, :-1]
        clean, pure = torch.zeros(past.shape[:2], dtype=torch.long), torch.full((len(x), 1), 20)
        state = model.denoiser.absorb(past, clean, model.denoiser.init_state(len(x)))
        guess, _ = model.denoiser(torch.randn(len(x), 1, 1, generator=torch.Generator().manual_seed(0)), pure, state)
    return float((guess - x[:, -1:]).square().mean())


@pytest.mark.slow
def test_a_memory_longer_than_the_window_is_learnt_where_the_state_is_carried():
    """Better than any forecast from a window could be, .36 (Bayes: .21); without, worse (measured .23, .41)."""
    at_best = forecast_error(WINDOW - 1)
    with_carry, without = error_at_the_end(True), error_at_the_end(False)
    assert forecast_error(EPISODE * WINDOW - 1) - 0.02 < with_carry < at_best - 0.03 and without > at_best


def test_carried_states_are_those_of_the_window_before():
    """Two windows with the state carried are one window of twice the length, at the levels that were drawn."""
    model, x = objective(True), episodes(6, 0)[:, :2].flatten(1, 2)
    first = torch.tensor([True, False] * 3)
    level = torch.randint(0, 21, x.shape[:2], generator=torch.Generator().manual_seed(0))
    cut = iter([level[:, :WINDOW], level[:, WINDOW:]])
    model.levels = lambda *_: next(cut)

    def shown(tokens: slice, begins: torch.Tensor, carried: list | None) -> list:
        generator = torch.Generator().manual_seed(1)
        batch = Batch(x[:, tokens], torch.ones(6, WINDOW, dtype=torch.bool), {}, begins)
        return model(batch, generator, carried)[2]

    carried = shown(slice(0, WINDOW), torch.ones(6, dtype=torch.bool), None)
    assert not carried[0].requires_grad
    ended = shown(slice(WINDOW, None), first, carried)[0]
    window_noise = torch.randn(6, WINDOW, 1, generator=torch.Generator().manual_seed(1))
    alpha, sigma = (table.float() for table in model.schedule(level, x))
    noisy = alpha * x + sigma * torch.cat([window_noise, window_noise], 1)
    state = model.denoiser.init_state(6)
    middle = model.denoiser.absorb(noisy[:, :WINDOW], level[:, :WINDOW], state)["z"]
    torch.testing.assert_close(carried[0], middle)
    begin = {"z": torch.where(first[:, None, None], state["z"], middle)}
    wanted = model.denoiser.absorb(noisy[:, WINDOW:], level[:, WINDOW:], begin)["z"]
    torch.testing.assert_close(ended, wanted)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.quick(1)
def test_resume_is_bit_exact_with_carried_states(accumulate):
    options = PLAIN | {"steps": 14, "accumulate": accumulate, "validate": batch_at, "validate_every": 4}
    *_, straight = fit(objective(True), batch_at, **options)
    for log in fit(objective(True), batch_at, **options):
        if log.step == 6:
            state = log.training.state()
            break
    *_, resumed = fit(objective(True), batch_at, resume=state, **options)
    ours, theirs = resumed.training.state(), straight.training.state()
    assert_same(ours, theirs)
    assert torch.equal(ours.carried["0"], theirs.carried["0"]) and ours.carried["0"].shape == (ROWS, 1, 32)
    assert resumed.metrics["val_loss"] == straight.metrics["val_loss"]
    *_, lost = fit(objective(True), batch_at, resume=state._replace(carried={}), **options)
    assert lost.metrics["loss"] != straight.metrics["loss"]  # the states do matter
    with pytest.raises(ValueError, match=r"carried to a batch of (32|16): keep the batch size"):
        next(fit(objective(True), lambda step: batch_at(step, shards=(0, 2)), resume=state, **options))


def test_parts_carry_their_own_rows():
    """In two parts the states are those of the whole batch: the noise is drawn by part, so it is switched off."""
    ends = []
    for accumulate in (1, 2):
        model = objective(True)
        model.levels = lambda schedule, shape, generator=None: torch.zeros(shape, dtype=torch.long)
        *_, log = fit(model, batch_at, **PLAIN | {"lr": 1e-9, "steps": 4, "accumulate": accumulate})
        ends.append(log.training.state().carried["0"])
    torch.testing.assert_close(*ends)


def test_a_bad_window_costs_a_step_and_the_state_of_its_row():
    def poisoned(step: int) -> Batch:
        batch = batch_at(step)
        if step == 3:
            batch.x[5] = float("nan")
        return batch

    *_, log = fit(objective(True), poisoned, steps=8, **PLAIN)
    assert log.metrics["skipped"] == 1 and log.training.carried[0].isfinite().all()


def test_who_can_carry():
    causal = objective(True, TransformerNet, heads=2, depth=1)
    *_, log = fit(causal, batch_at, **PLAIN | {"steps": 3})
    assert len(log.training.state().carried) > 1
    for net, size in ((TransformerNet, {"heads": 2, "depth": 1, "causal": False}), (TemporalUNet, {})):
        with pytest.raises(ValueError, match="carry=True needs a causal denoiser"):
            objective(True, net, **size)


@pytest.mark.slow
def test_faults_in_short(tmp_path):
    """python scripts/faults has the long form: 50 kills, 1,000 mutations, all hostile nodes, files and numbers."""
    words = [sys.executable, str(ROOT / "scripts" / "faults"), "--short", "--work", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^all +\d{3,} .* 0 +0 +0$", done.stdout, re.M), done.stdout
