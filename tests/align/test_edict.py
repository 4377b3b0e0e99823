"""EDICT is undone exactly, its gradient through the inversion is the true one, and DOODL climbs on the sphere."""

from __future__ import annotations

import pytest
import torch

from dforce.align import Edict, doodl
from dforce.core.denoiser import Precond
from dforce.core.matrix import full_sequence, pyramid
from dforce.core.sample import generate
from dforce.core.schedule import cosine, flow, linear
from dforce.core.transition import transition
from dforce.guidance.wrapper import classifier_free
from tests.align_bed import Gaussian, Vectors, networks

F64 = torch.float64


def start(batch=4, time=2, dim=3, dtype=F64):
    return torch.randn(batch, time, dim, generator=torch.Generator().manual_seed(3), dtype=dtype)


def stirred(model):
    """A random network that says something at every level."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def error(edict, x, y=None):
    ends = edict.down(x, y)
    back = edict.up(*ends)
    return max(float((one - other).abs().max()) for one, other in zip(back, (x, x if y is None else y), strict=True))


@pytest.mark.parametrize("name", ["recurrent", "transformer", "temporal", "image"])
@pytest.mark.parametrize("delay", [0, 3])
@pytest.mark.quick(3)
def test_round_trips_are_exact_in_float64(name, delay) -> None:
    schedule = linear(1000)
    model = stirred(networks(schedule)[name].double())
    matrix = pyramid(schedule.grid(20), 4, delay)
    x = start(2, 4)
    assert error(Edict(model, schedule, matrix), x) < 1e-9
    assert error(Edict(model, schedule, matrix), x, x + 0.01 * x.flip(0)) < 1e-9         # copies need not begin alike


def test_fifty_steps_in_float64_and_what_float32_costs(capsys) -> None:
    schedule = linear(1000)
    torch.manual_seed(0)
    model, matrix = stirred(Precond(Vectors(16), schedule, "v")), full_sequence(schedule.grid(50), 1)
    x = start(8, 1, 16, torch.float32)
    with torch.no_grad():
        edict, pair = Edict(model, schedule, matrix), (x.double(), x.double())
        for move, rows in ((edict.step, range(50)), (edict.back, reversed(range(50)))):
            for row in rows:
                pair = tuple(copy.float().double() for copy in move(*pair, row))          # copies kept in float32
        rounded = float((pair[0] - x).abs().max())
        noisy = generate(model, schedule, matrix, x, order=1)                             # naive inversion of DDIM
        for level, to in zip(matrix[1:].flip(0), matrix[:-1].flip(0), strict=True):
            if level[0] > 0:
                eps = (noisy - schedule.alpha[level].float() * model(noisy, level.expand(8, 1), model.init_state(8))[0]
                       ) / schedule.sigma[level].float()
                clean = (noisy - schedule.sigma[level].float() * eps) / schedule.alpha[level].float()
                noisy = (schedule.alpha[to] * clean + schedule.sigma[to] * eps).float()
    single = error(edict, x)
    double = error(Edict(model.double(), schedule, matrix), x.double())
    naive = float((noisy - x).abs().max())
    with capsys.disabled():
        print(f"\nEDICT round trip, 50 steps: {double:.1e} in float64, {single:.1e} with a float32 network, "
              f"{rounded:.1e} with copies in float32 too; naive DDIM inversion {naive:.1e}")
    assert double < 1e-9 and single < 1e-6 and 10 * single < rounded < 1e-2 and 10 * rounded < naive


def test_a_step_is_ddim_by_the_noise_that_the_other_copy_shows() -> None:
    schedule = linear(1000)
    model = stirred(networks(schedule)["image"].double())
    x, y = start(), start().flip(0)
    level, to = torch.full((4, 2), 600), torch.full((4, 2), 300)
    found, _ = Edict(model, schedule, torch.tensor([[600] * 2, [300] * 2]), mix=1.0).down(x, y)
    (alpha, sigma), (alpha_to, sigma_to) = schedule(level, x), schedule(to, x)
    x0, _ = model(y, level, model.init_state(4))
    eps = (y - alpha * x0) / sigma
    by_hand = alpha_to * (x - sigma * eps) / alpha + sigma_to * eps                         # the noise of y, put to x
    torch.testing.assert_close(found, by_hand)
    plain = transition(schedule, x, model(x, level, model.init_state(4))[0], level, to, eta=0.0).mean
    alike, _ = Edict(model, schedule, torch.tensor([[600] * 2, [300] * 2]), mix=1.0).down(x)
    torch.testing.assert_close(alike, plain)                                               # equal copies: DDIM itself


def test_the_last_step_remembers_x() -> None:
    """x0_hat(y) alone, in place of x0_hat(y) + (x - y) / alpha, would send every x to the same clean token."""
    schedule = linear(1000)
    model = stirred(networks(schedule)["image"].double())
    last, y = Edict(model, schedule, torch.tensor([[40] * 2, [0] * 2])), start()
    one, other = (last.down(y + shift, y)[0] for shift in (0.0, 0.1))
    assert (one - other).abs().min() > 0.05
    x0, _ = model(y, torch.full((4, 2), 40), model.init_state(4))
    forgets = [transition(schedule, y + shift, x0, torch.full((4, 2), 40), torch.zeros(4, 2, dtype=torch.long),
                          eta=0.0).mean for shift in (0.0, 0.1)]
    assert torch.equal(*forgets)


def test_edict_ends_in_the_law_of_the_model() -> None:
    schedule = linear(1000)
    model = Gaussian(schedule, 0.6, 0.5, dtype=F64)
    x = torch.randn(4000, 1, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        end, copy = Edict(model, schedule, schedule.grid(100)[:, None]).down(x)
    for value in (end, copy):
        assert float(value.mean()) == pytest.approx(0.6, abs=0.03)
        assert float(value.std()) == pytest.approx(0.5, abs=0.04)


def test_guided_and_conditional_runs_come_back_too() -> None:
    schedule = cosine(200)
    inner = stirred(Precond(Vectors(3), schedule, "v").double())
    model = classifier_free(inner, 3.0, {"static": {"class": torch.zeros(1, dtype=torch.long)}})
    cond = {"static": {"class": torch.tensor([0, 1, 2, 1])}}
    matrix = full_sequence(schedule.grid(15), 2)
    edict = Edict(model, schedule, matrix, cond=cond)
    assert error(edict, start()) < 1e-9
    other = Edict(model, schedule, matrix, cond={"static": {"class": torch.tensor([2, 1, 2, 1])}})
    with torch.no_grad():
        assert (edict.down(start())[0] - other.down(start())[0])[0].abs().max() > 1e-3
        state = model.init_state(4, cond)
        assert torch.equal(Edict(model, schedule, matrix, state=state).down(start())[0], edict.down(start())[0])


def test_what_cannot_be_undone_is_refused() -> None:
    schedule = flow(100)
    model = Gaussian(schedule, dtype=F64)
    with pytest.raises(ValueError, match="alpha is 0.*Begin at a level below 100"):
        Edict(model, schedule, schedule.grid(5)[:, None])
    assert error(Edict(model, schedule, torch.tensor([[95], [50], [10], [0]])), start(4, 1)) < 1e-9
    held = torch.tensor([[100, 60], [100, 30], [100, 0]])                                  # pure noise that stays put
    assert error(Edict(model, schedule, held), start(4, 2)) < 1e-9
    for mix in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"mix must lie in \(0, 1\]"):
            Edict(model, schedule, held, mix=mix)


def test_the_gradient_through_the_inversion_is_that_of_autograd() -> None:
    schedule = linear(1000)
    model = stirred(networks(schedule)["transformer"].double())
    edict = Edict(model, schedule, pyramid(schedule.grid(10), 3, 2))
    grads = []
    for run in (edict.down, edict.through):
        x, y = start(2, 3).requires_grad_(), start(2, 3).flip(0).requires_grad_()
        end, copy = run(x, y)
        grads.append(torch.autograd.grad((end * torch.arange(3)).sum() + copy.square().sum(), (x, y)))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    assert grads[0][0].abs().max() > 0.1
    x = start(2, 3, dtype=torch.float32).requires_grad_()
    single = Edict(model.float(), schedule, edict.matrix)
    assert torch.autograd.grad(single.through(x)[0].sum(), x)[0].dtype == torch.float32


@pytest.mark.slow
def test_doodl_climbs_and_its_latent_stays_on_the_sphere() -> None:
    schedule = linear(1000)
    torch.manual_seed(0)
    model = Precond(Vectors(32), schedule, "v")
    edict, x = Edict(model, schedule, full_sequence(schedule.grid(10), 1)), start(3, 1, 32, torch.float32)
    target = torch.randn(32, generator=torch.Generator().manual_seed(1))

    def energy(x0):
        return -(x0[:, 0] - target).square().mean(1)

    found = doodl(edict, x, energy, updates=12, rate=0.1)
    assert found.energy.shape == (13, 3)
    with torch.no_grad():
        plain = edict.down(x)[0].float()
        torch.testing.assert_close(found.energy[0], energy(plain).double(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(edict.down(found.latent)[0].float(), found.x0, rtol=0, atol=1e-4)
    assert (energy(found.x0) > energy(plain) + 0.3).all()
    torch.testing.assert_close(energy(found.x0).double(), found.energy.amax(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.latent.norm(dim=2), x.norm(dim=2))
    alone = doodl(edict, x[1:2], energy, updates=12, rate=0.1)                              # rows do not meet
    torch.testing.assert_close(alone.x0, found.x0[1:2], rtol=0, atol=1e-3)
    still = doodl(edict, x, lambda x0: 0.1 + 0 * x0.sum((1, 2)), updates=2)
    assert torch.equal(still.latent, x) and torch.equal(still.x0, plain)                    # a constant changes nothing
    for bad in ({"updates": 0}, {"rate": 0.0}, {"momentum": 1.0}):
        with pytest.raises(ValueError, match="updates must be >= 1"):
            doodl(edict, x, energy, **bad)
    with pytest.raises(ValueError, match="no gradient in the tokens.*best_of_n"):
        doodl(edict, x, lambda x0: torch.ones(len(x0)))
