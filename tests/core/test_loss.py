"""The loss: weights are those of the eps, v and x0 objectives, levels have the laws they name, masks count."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dforce.core.denoiser import Denoiser, Precond
from dforce.core.loss import (
    corrupt,
    even_log_snr,
    forcing_loss,
    fused_snr,
    independent,
    jolted,
    min_snr,
    pyramids,
    rising,
    shared,
    snr,
    teacher_forcing,
    uniform,
    v_weight,
)
from dforce.core.matrix import pyramid
from dforce.core.schedule import flow, linear
from dforce.nets.recurrent import RecurrentNet
from dforce.train.objectives import ForcingObjective

S = linear(200)


class Fixed(Denoiser):
    """A denoiser that always answers `x0_hat` (or zeros)."""

    def __init__(self, x0_hat=None):
        self.x0_hat = x0_hat

    def init_state(self, batch, cond=None):
        return torch.zeros(batch, 0)

    def __call__(self, x, level, state, cond=None):
        self.x, self.level = x, level
        return (torch.zeros_like(x) if self.x0_hat is None else self.x0_hat), state


def at(level):
    return lambda schedule, shape, generator: level


# ---------------------------------------------------------------------------------------------------------- corrupt

def test_corrupt_has_the_closed_form_moments():
    level = torch.tensor([[0, 1, 100, 200]]).expand(60_000, 4)
    x = corrupt(S, torch.full((60_000, 4, 1), 1.5), level, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0)[:, 0].double(), 1.5 * S.alpha[level[0]], rtol=0, atol=0.02)
    torch.testing.assert_close(x.std(0)[:, 0].double(), S.sigma[level[0]], rtol=0.01, atol=1e-6)
    assert (x[:, 0] == 1.5).all()
    noise = torch.randn(2, 3, 2)
    x0 = torch.randn(2, 3, 2)
    got = corrupt(S, x0, torch.full((2, 3), 50), noise)
    torch.testing.assert_close(got, (S.alpha[50] * x0 + S.sigma[50] * noise).float())


def test_a_jolt_moves_means_and_contrasts_before_its_cut_and_nothing_after():
    x0 = torch.rand(1, 1, 2, 3, 4, generator=torch.Generator().manual_seed(0)).expand(20_000, 3, -1, -1, -1)
    shown = jolted(x0, 0.1, torch.Generator().manual_seed(1))
    moved = (shown != x0).flatten(2).any(2)
    cut = moved.sum(1)
    assert torch.equal(moved, torch.arange(3) < cut[:, None])  # a beginning
    torch.testing.assert_close(cut.bincount(minlength=3) / len(cut), torch.full((3,), 1 / 3), rtol=0, atol=0.01)
    mean, was = shown.mean((3, 4), keepdim=True), x0.mean((3, 4), keepdim=True)
    offset, gain = (mean - was)[cut == 2, :2, :, 0, 0], ((shown - mean) / (x0 - was)).flatten(2)[cut == 2, :2]
    torch.testing.assert_close(gain, gain[:, :1, :1].expand_as(gain), rtol=0, atol=1e-3)  # one for a sequence
    torch.testing.assert_close(offset[:, 0], offset[:, 1])
    for drawn in (offset[:, 0, 0], offset[:, 0, 1], gain[:, 0, 0] - 1):
        assert abs(drawn.mean()) < 0.005 and abs(drawn.std() - 0.1) < 0.004
    assert abs(torch.corrcoef(offset[:, 0].T)[0, 1]) < 0.05  # channels apart


# ---------------------------------------------------------------------------------------------------- level samplers

def test_levels_of_a_power_are_that_power_of_uniform_ones():
    """P(level < k) = (k / (K + 1)) ** (1 / power); power 1 is the uniform one, draw for draw."""
    level = independent(linear(9), (20_000, 4), torch.Generator().manual_seed(0), power=2.0)
    assert level.min() == 0 and level.max() == 9
    for k in (1, 4, 8):
        assert abs((level < k).double().mean() - (k / 10) ** 0.5) < 0.01
    for kind in (independent, shared, rising):
        plain, same = (kind(S, (4, 3), torch.Generator().manual_seed(1), **given) for given in ({}, {"power": 1.0}))
        assert torch.equal(plain, same)
    with pytest.raises(ValueError, match="power must be above 0, got 0"):
        independent(S, (4, 3), power=0)


def test_even_levels_are_as_likely_at_every_step_of_log_snr():
    level = even_log_snr(S, (20_000, 4), torch.Generator().manual_seed(0), steps=8)
    values, counts = level.unique(return_counts=True)
    assert values.tolist() == S.grid(8).flip(0).tolist()
    assert (counts / level.numel() - 1 / 9).abs().max() < 0.006
    gaps = S.log_snr(values[1:]).diff()
    assert (gaps - gaps.mean()).abs().max() < 0.1 * gaps.mean().abs()   # levels are whole numbers


def test_independent_levels_are_uniform_and_independent():
    level = independent(linear(9), (20_000, 4), torch.Generator().manual_seed(0))
    assert level.min() == 0 and level.max() == 9
    share = torch.stack([(level == k).float().mean(0) for k in range(10)])
    assert (share - 0.1).abs().max() < 0.012
    assert (torch.corrcoef(level.T.float()) - torch.eye(4)).abs().max() < 0.04


def test_shared_levels_are_one_a_sequence():
    level = shared(linear(9), (20_000, 4), torch.Generator().manual_seed(0))
    assert (level == level[:, :1]).all() and level.shape == (20_000, 4)
    assert ((level[:, 0, None] == torch.arange(10)).float().mean(0) - 0.1).abs().max() < 0.012


def test_rising_levels_are_order_statistics():
    level = rising(linear(999), (20_000, 4), torch.Generator().manual_seed(0))
    assert (level.diff(dim=1) >= 0).all()
    torch.testing.assert_close(level.float().mean(0) / 999, torch.tensor([0.2, 0.4, 0.6, 0.8]), rtol=0, atol=0.01)


def test_teacher_forcing_has_a_clean_past_and_a_noisy_future():
    level = teacher_forcing(linear(9), (20_000, 4), torch.Generator().manual_seed(0))
    position = (level == 0).sum(1)
    assert set(position.tolist()) == {0, 1, 2, 3}  # level 0 never falls on the token that is learnt
    assert ((position[:, None] == torch.arange(4)).float().mean(0) - 0.25).abs().max() < 0.015
    tokens = torch.arange(4)
    assert (level[tokens < position[:, None]] == 0).all() and (level[tokens > position[:, None]] == 9).all()
    now = level.gather(1, position[:, None])
    assert ((now == torch.arange(1, 10)).float().mean(0) - 1 / 9).abs().max() < 0.012


def test_pyramids_are_rows_of_the_matrices_that_planners_sample_by():
    """Every sequence is a row of some pyramid, rows of all delays come, and so do long stretches of pure noise."""
    steps, time = 5, 8
    known: dict[tuple[int, ...], set[int]] = {}
    for delay in range(steps + 1):
        for row in pyramid(S.grid(steps), time, delay).tolist():
            known.setdefault(tuple(row), set()).add(delay)
    drawn = [tuple(row) for row in pyramids(S, (3000, time), torch.Generator().manual_seed(0), share=1.0,
                                            steps=steps).tolist()]
    assert set(drawn) <= set(known)
    telling = {row: next(iter(delays)) for row, delays in known.items() if len(delays) == 1}
    assert {telling[row] for row in drawn if row in telling} == set(telling.values()) == {0, 1, 2, 3, 5}
    assert sum(row[2:] == (200,) * 6 for row in drawn) > 0.08 * len(drawn)
    half = pyramids(S, (4000, 40), torch.Generator().manual_seed(0))
    rises = (half.diff(dim=1) >= 0).all(1).double().mean()  # of 40 independent levels none do
    assert abs(rises - 0.5) < 0.03
    with pytest.raises(ValueError, match=r"in 0..1, got 1.5"):
        pyramids(S, (4, 3), share=1.5)


@pytest.mark.parametrize("levels", [independent, shared, rising, pyramids, teacher_forcing])
def test_levels_are_a_function_of_the_generator(levels):
    a, b = (levels(S, (5, 6), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == torch.int64 and a.shape == (5, 6)


# ---------------------------------------------------------------------------------------------------------- weights

def test_weights_turn_the_x0_error_into_the_eps_and_v_losses():
    """One network answer, its error measured in x0, in noise and in velocity (all uncapped)."""
    g = torch.Generator().manual_seed(0)
    x0, noise, guess = torch.randn(3, 64, 5, 3, generator=g).double()
    level = torch.randint(1, 201, (64, 5), generator=g)
    alpha, sigma = S(level, x0)
    x = alpha * x0 + sigma * noise
    eps_hat = (x - alpha * guess) / sigma
    v, v_hat = alpha * noise - sigma * x0, (alpha * x - guess) / sigma
    log_snr = S.log_snr(level)
    for weight, loss in ((snr(cap=1e9), (eps_hat - noise) ** 2), (v_weight(cap=1e9), (v_hat - v) ** 2),
                         (uniform(), (guess - x0) ** 2)):
        torch.testing.assert_close(weight(log_snr)[..., None] * (guess - x0) ** 2, loss, rtol=1e-6, atol=1e-9)


def test_the_caps():
    log_snr = torch.tensor([[-3.0, 0.0, 20.0]])
    assert snr(100)(log_snr)[0].tolist() == pytest.approx([0.0498, 1, 100], abs=1e-4)
    assert min_snr(5)(log_snr)[0].tolist() == pytest.approx([0.0498, 1, 5], abs=1e-4)
    assert v_weight(5)(log_snr)[0].tolist() == pytest.approx([1.0498, 2, 5], abs=1e-4)


def fused_by_the_paper(ratio: list[float], clip: float, decay: float) -> list[float]:
    """Appendix B.1 and the official implementation, one sequence, one number at a time: the weight of the x0 error."""
    normalised = [min(value, clip) / clip for value in ratio]
    cumulative, weights = 0.0, []
    for t, own in enumerate(normalised):
        shown = decay * cumulative if t else 0.0      # what the past has already told, faded once more
        weights.append(clip * (1 - (1 - shown) * (1 - own)))
        cumulative = own if t == 0 else decay * cumulative + (1 - decay) * own
    return weights


@pytest.mark.parametrize("clip, decay", [(5.0, 0.96), (1.0, 0.5), (20.0, 0.9)])
def test_fused_snr_is_the_papers(clip, decay):
    log_snr = 4 * torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).double()
    wanted = [fused_by_the_paper(row.exp().tolist(), clip, decay) for row in log_snr]
    got = fused_snr(clip, decay)(log_snr)
    torch.testing.assert_close(got, torch.tensor(wanted).double())
    torch.testing.assert_close(got[:, 0], min_snr(clip)(log_snr)[:, 0])           # the first token has no past
    assert (got >= min_snr(clip)(log_snr) - 1e-9).all() and (got <= clip + 1e-9).all()
    # A clean past makes a noisy token worth learning: weight clip * decay where its own SNR is nil.
    past = torch.tensor([[20.0, 20.0, 20.0, -20.0]])
    assert float(fused_snr(clip, decay)(past)[0, -1]) == pytest.approx(clip * decay, rel=1e-4)


# ------------------------------------------------------------------------------------------------------------- loss

def test_the_loss_is_the_weighted_mean_by_hand():
    x0, hat = torch.randn(2, 4, 3, 2)
    level = torch.randint(0, 201, (4, 3))
    loss, _ = forcing_loss(Fixed(hat), S, x0, levels=at(level), weight=snr(7.0))
    by_hand = sum(min(float((S.alpha[k] / S.sigma[k]) ** 2), 7.0) * float(((hat - x0)[b, t] ** 2).mean())
                  for b in range(4) for t in range(3) for k in [max(int(level[b, t]), 1)]) / 12
    assert float(loss) == pytest.approx(by_hand, rel=1e-5)
    default, _ = forcing_loss(Fixed(hat), S, x0, levels=at(level))
    assert default == forcing_loss(Fixed(hat), S, x0, levels=at(level), weight=fused_snr(5.0, 0.9))[0]
    torch.testing.assert_close(fused_snr(5.0, 0.9)(S.log_snr(level[:, :1])), min_snr(5.0)(S.log_snr(level[:, :1])))


def test_a_perfect_denoiser_has_no_loss_and_sees_corrupted_tokens():
    x0 = torch.randn(4, 3, 2)
    denoiser = Fixed(x0)
    assert forcing_loss(denoiser, S, x0, generator=torch.Generator().manual_seed(0))[0] == 0
    again = torch.Generator().manual_seed(0)
    level = independent(S, (4, 3), again)
    assert torch.equal(denoiser.level, level) and torch.equal(denoiser.x, corrupt(S, x0, level, again))


@pytest.mark.parametrize("event", [(2,), (2, 3)])
def test_masks(event):
    g = torch.Generator().manual_seed(0)
    x0, hat = torch.randn(2, 4, 3, *event, generator=g)
    level = torch.full((4, 3), 60)
    tokens = torch.rand(4, 3, generator=g) < 0.6
    error = ((hat - x0) ** 2).flatten(2) * fused_snr(5.0, 0.9)(S.log_snr(level))[..., None].float()

    def loss(mask, x0_hat=hat):
        return forcing_loss(Fixed(x0_hat), S, x0, mask=mask, levels=at(level))[0]

    torch.testing.assert_close(loss(tokens), error.mean(2)[tokens].mean())
    torch.testing.assert_close(loss(torch.ones_like(tokens)), error.mean())
    # A mask of whole tokens says the same in both shapes.
    whole = tokens.view(4, 3, *(1,) * len(event)).expand(4, 3, *event)
    torch.testing.assert_close(loss(whole), loss(tokens))
    # Padded dimensions: the mean over what there is, token by token.
    dims = torch.rand(4, 3, *event, generator=g) < 0.5
    per_token = [error[b, t][dims[b, t].flatten()].mean() for b in range(4) for t in range(3) if dims[b, t].any()]
    torch.testing.assert_close(loss(dims), torch.stack(per_token).mean())
    assert torch.equal(loss(dims), loss(dims, torch.where(dims, hat, 1e3)))       # what is masked does not matter
    assert loss(torch.zeros_like(tokens)) == 0


def test_the_objective_is_a_module_that_owns_its_denoiser():
    objective = ForcingObjective(Precond(RecurrentNet((2,), width=8), S, "v"), S)
    batch = SimpleNamespace(x=torch.randn(4, 3, 2), mask=torch.ones(4, 3, dtype=torch.bool), cond={})
    loss, logs = objective(batch, torch.Generator().manual_seed(0))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters()) and len(list(objective.parameters())) > 5
    assert logs["loss"] == loss and not logs["loss"].requires_grad
    assert objective(batch, torch.Generator().manual_seed(0))[0] == loss
    assert any(p.grad.abs().sum() > 0 for p in objective.denoiser.net.core.parameters())


def test_a_carried_state_is_used():
    denoiser = Precond(RecurrentNet((2,), width=8), flow(50), "flow")
    x0 = torch.randn(2, 4, 2)
    level, g = torch.randint(0, 51, (2, 4)), torch.Generator
    noise = g().manual_seed(1)
    _, after = forcing_loss(denoiser, flow(50), x0, levels=at(level), generator=noise)
    fresh, _ = forcing_loss(denoiser, flow(50), x0, levels=at(level), generator=g().manual_seed(2))
    carried, _ = forcing_loss(denoiser, flow(50), x0, levels=at(level), state=after, generator=g().manual_seed(2))
    assert after["z"].shape == (2, 1, 8) and carried != fresh
