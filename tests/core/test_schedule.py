"""Schedules: the tables are what their papers say, stay exact under casts, and give strictly falling grids."""

from __future__ import annotations

import copy
import inspect
import math

import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.diffusers_schedule import AUTOENCODER, SCHEDULERS, UNET, from_diffusers, sampling_levels
from dforce.core.schedule import Schedule, cosine, flow, from_betas, linear, sigmoid
from dforce.core.transition import transition
from dforce.nets.recurrent import RecurrentNet


def variance_exploding(levels: int = 1000) -> Schedule:
    sigma = torch.logspace(-2, 2, levels, dtype=torch.float64)
    return Schedule(torch.ones(levels + 1), torch.cat([torch.zeros(1, dtype=torch.float64), sigma]))


ALL = {
    "linear": linear(1000), "linear100": linear(100), "linear10": linear(10), "cosine": cosine(1000),
    "cosine50": cosine(50), "sigmoid": sigmoid(1000), "flow": flow(1000), "shifted": flow(1000, shift=3.0),
    "flow7": flow(7), "ve": variance_exploding(), "one": flow(1),
}


@pytest.fixture(params=ALL, ids=str)
def schedule(request):
    return ALL[request.param]


def test_level_zero_is_clean_and_the_ratio_falls(schedule):
    assert schedule.alpha[0] == 1 and schedule.sigma[0] == 0
    assert schedule.alpha.dtype == schedule.sigma.dtype == schedule.label.dtype == torch.float64
    level = torch.arange(schedule.levels + 1)
    assert (schedule.log_snr(level).diff() <= 0).all() and schedule.log_snr(level).abs().max() <= 20
    assert torch.isfinite(schedule.label).all() and schedule.label[0] == schedule.label[1]
    assert schedule.log_snr(level[:1]) == schedule.log_snr(level[1:2])


@pytest.mark.parametrize("name", ["linear", "linear100", "linear10", "cosine", "cosine50", "sigmoid"])
def test_variance_preserving(name):
    torch.testing.assert_close(ALL[name].alpha**2 + ALL[name].sigma**2, torch.ones(ALL[name].levels + 1).double())


def test_linear_is_ddpm():
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    product, wanted = 1.0, [1.0]
    for beta in betas:
        product *= 1 - beta
        wanted.append(product)
    torch.testing.assert_close(linear(1000).alpha ** 2, torch.tensor(wanted).double(), rtol=1e-6, atol=1e-12)
    # Fewer levels end noisier, as the docstring says.
    for levels, last in ((2000, 6.5e-3), (1000, 6.35e-3), (500, 6.1e-3), (100, 4.5e-3), (50, 2.8e-3), (20, 7.7e-6)):
        assert float(linear(levels).alpha[-1]) == pytest.approx(last, rel=0.02)


def test_cosine_is_nichol_and_dhariwal():
    u = torch.arange(1001).double() / 1000
    f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(cosine(1000).alpha[:990] ** 2, (f / f[0])[:990], rtol=1e-9, atol=1e-12)


def test_sigmoid_is_symmetric_and_follows_its_formula():
    s, g = sigmoid(1000), torch.sigmoid
    u = torch.arange(1001).double() / 1000
    low, high = g(torch.tensor(-3.0).double()), g(torch.tensor(3.0).double())
    wanted = (high - g(6 * u - 3)) / (high - low)
    torch.testing.assert_close(s.alpha[:-1] ** 2, wanted[:-1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(s.alpha[500] ** 2, torch.tensor(0.5).double(), rtol=1e-6, atol=1e-6)


def test_flow_is_the_straight_path():
    torch.testing.assert_close(flow(10).sigma, torch.arange(11).double() / 10)
    torch.testing.assert_close(flow(10).alpha + flow(10).sigma, torch.ones(11).double())
    shifted, u = flow(10, shift=3.0), torch.arange(11).double() / 10
    # Esser et al. 2024: shifting by m^2 multiplies sigma / alpha by it.
    torch.testing.assert_close((shifted.sigma / shifted.alpha)[:-1], 3 * (u / (1 - u))[:-1])
    assert shifted.alpha[-1] == 0


@pytest.mark.parametrize("cast", [
    lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.float16), lambda m: m.float(),
    lambda m: m.to("cpu", torch.bfloat16), lambda m: m.bfloat16().float().double(), lambda m: copy.deepcopy(m).half()])
@pytest.mark.parametrize("inside", [False, True])
def test_no_cast_touches_the_tables(cast, inside):
    exact, s = linear(1000), linear(1000)
    if inside:
        module = cast(Precond(RecurrentNet((2,), width=8), s))
        s = module.schedule
        dtype = next(module.net.parameters()).dtype
        assert dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    else:
        s = cast(s)
    for name in ("alpha", "sigma", "label"):
        assert torch.equal(getattr(s, name), getattr(exact, name)) and getattr(s, name).dtype == torch.float64
    assert not s.state_dict()  # tables are no weights


def test_bfloat16_reaches_the_network_beside_the_tables():
    module = Precond(RecurrentNet((2,), width=8), linear(10)).bfloat16()
    assert {p.dtype for p in module.net.parameters()} == {torch.bfloat16}
    out, _ = module(torch.zeros(1, 3, 2, dtype=torch.bfloat16), torch.full((1, 3), 5), module.init_state(1))
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("spacing", ["log_snr", "index"])
def test_grids_fall_strictly_from_K_to_0(schedule, spacing):
    counts = sorted({n for n in (1, 2, 3, 5, 7, 10, 20, 33, 50, 100, 250, 999) if n <= schedule.levels}
                    | {schedule.levels, max(1, schedule.levels - 1)})
    for steps in counts:
        grid = schedule.grid(steps, spacing)
        assert grid.dtype == torch.int64 and len(grid) == steps + 1
        assert grid[0] == schedule.levels and grid[-1] == 0 and (grid.diff() < 0).all(), (steps, grid)


@pytest.mark.parametrize("name", ["linear", "cosine", "flow", "ve", "sigmoid"])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_log_snr_is_even_where_the_table_allows(name, steps):
    s = ALL[name]
    table = s.log_snr(torch.arange(1, s.levels + 1))
    got = s.log_snr(s.grid(steps)[:-1])
    wanted = torch.linspace(max(float(table[-1]), -12.0), float(table[0]), steps).double()
    level = s.grid(steps)[:-1].clamp(2, s.levels - 1)
    neighbour = torch.maximum(s.log_snr(level - 1) - s.log_snr(level), s.log_snr(level) - s.log_snr(level + 1))
    # The last few levels of cosine, sigmoid and flow are nats apart: there the fall has to be kept strict instead.
    inside = wanted.abs() < 7
    assert ((got - wanted).abs() <= neighbour + 1e-9)[inside].all()
    if name == "ve":  # itself evenly spaced: only the rounding to whole levels is left
        assert got.diff().max() - got.diff().min() <= 2.1 * float(-table.diff().mean())


@pytest.mark.parametrize("name", ["cosine", "flow", "sigmoid"])
def test_no_steps_are_lost_in_pure_noise(name):
    """Level K of these lies at -15 to -20 nats, and the last levels are nats apart."""
    log_snr = ALL[name].log_snr(ALL[name].grid(10)[:-1])
    assert (log_snr < -6.9).sum() <= 4 and log_snr.diff()[2:].max() < 1.6 * log_snr.diff()[2:].mean()


def test_index_grid_is_trailing():
    assert linear(1000).grid(4, "index").tolist() == [1000, 750, 500, 250, 0]


def test_nearest():
    s = flow(1000)
    assert s.nearest(0.0) == 0 and s.nearest(1.0) == 500 and s.nearest(1e4) == 999 and s.nearest(1e12) == 1000
    ratio = linear(1000).sigma / linear(1000).alpha
    for level in (1, 10, 500, 1000):
        assert linear(1000).nearest(float(ratio[level])) == level
    with pytest.raises(ValueError, match="cannot be negative, got -1"):
        s.nearest(-1)


def test_forward_broadcasts():
    s = linear(10)
    alpha, sigma = s(torch.tensor([[0, 10], [3, 3]]), torch.zeros(2, 2, 4, 5))
    assert alpha.shape == sigma.shape == (2, 2, 1, 1) and alpha[0, 0] == 1 and sigma[0, 1] == s.sigma[10]


ONE = torch.tensor([1.0, 0.5, 0.1])
ZERO = torch.tensor([0.0, 0.5, 0.9])


@pytest.mark.parametrize("alpha, sigma, label, message", [
    (ONE[:1], ZERO[:1], None, "tables"),
    (ONE, ZERO[:2], None, r"tables .* got \[3\], \[2\]"),
    (ONE[None], ZERO[None], None, "tables"),
    (ONE * 0.9, ZERO, None, "level 0 must be clean .* alpha=0.9"),
    (ONE, ZERO + 0.1, None, "level 0 must be clean"),
    (ONE, ZERO, torch.zeros(2), "one entry a level"),
    (torch.tensor([1.0, float("nan"), 0.1]), ZERO, None, "finite"),
    (ONE, torch.tensor([0.0, 0.5, float("inf")]), None, "finite"),
    (torch.tensor([1.0, 0.5, 0.5]), torch.tensor([0.0, 0.5, 0.5]), None, "rise strictly"),
    (torch.tensor([1.0, 0.5, 0.6]), torch.tensor([0.0, 0.5, 0.5]), None, "rise strictly"),
    (ONE, torch.tensor([0.0, 0.0, 0.5]), None, "rise strictly"),
    (ONE, torch.tensor([0.0, -0.1, 0.5]), None, "rise strictly"),
    (torch.tensor([1.0, -0.1, -0.5]), ZERO, None, "rise strictly"),
    (torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 1.0]), None, "rise strictly"),
])
def test_bad_tables_raise(alpha, sigma, label, message):
    with pytest.raises(ValueError, match=message):
        Schedule(alpha, sigma, label)


def test_bad_grids_raise():
    for steps in (0, 11, -1):
        with pytest.raises(ValueError, match=rf"1\.\.10 .* got {steps}"):
            linear(10).grid(steps)
    with pytest.raises(ValueError, match="'karras'"):
        linear(10).grid(5, "karras")


# -------------------------------------------------------------------------------------------------------- diffusers

def test_from_diffusers_ddpm_and_ddim():
    diffusers = pytest.importorskip("diffusers")
    for scheduler in (diffusers.DDPMScheduler(clip_sample=False),
                      diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
                      diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=100,
                                              clip_sample=False)):
        s = from_diffusers(scheduler)
        assert s.levels == len(scheduler.betas)
        torch.testing.assert_close((s.alpha**2)[1:], scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-7)
        assert s.label.tolist() == [0.0, *map(float, range(s.levels))]
    # The float64 product of the scheduler's own betas, not its float32 one.
    exact = from_betas(diffusers.DDPMScheduler().betas)
    assert torch.equal(from_diffusers(diffusers.DDPMScheduler(clip_sample=False)).alpha, exact.alpha)


def test_from_diffusers_flow():
    diffusers = pytest.importorskip("diffusers")
    for shift in (1.0, 3.0):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        s = from_diffusers(scheduler)
        assert s.levels == 1000
        torch.testing.assert_close(s.sigma[1:], scheduler.sigmas.double().flip(0))
        torch.testing.assert_close(s.sigma, flow(1000, shift=shift).sigma, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(s.label[1:], scheduler.timesteps.double().flip(0), rtol=1e-5, atol=1e-3)
        scheduler.set_timesteps(10)  # the training table stays
        assert torch.equal(from_diffusers(scheduler).sigma, s.sigma)
        steps = from_diffusers(scheduler, 10)
        assert steps.levels == 10
        torch.testing.assert_close(steps.sigma, scheduler.sigmas.double().flip(0))
        torch.testing.assert_close(steps.label[1:], scheduler.timesteps.double().flip(0), rtol=1e-6, atol=1e-4)


def test_the_sampling_of_a_flow_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, num_train_timesteps=500)
    s, x = from_diffusers(scheduler, 10), torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(10)
    theirs, ours = x, x
    for k, t in zip(range(10, 0, -1), scheduler.timesteps, strict=True):
        theirs = scheduler.step(torch.sin(theirs + t / 500), t, theirs).prev_sample
        level = torch.full(x.shape[:2], k)
        alpha, sigma = (table.float() for table in s(level, ours))
        x0 = (ours - sigma * torch.sin(ours + s.label[k].float() / 500)) / (alpha + sigma)
        ours = transition(s, ours, x0, level, level - 1, eta=0.0).mean
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_is_read_of_diffusers_classes_is_all_they_have():
    """Every entry of every class is honoured, idle or refused: one that a later diffusers adds fails here."""
    diffusers = pytest.importorskip("diffusers")
    for name, entries in {**SCHEDULERS, "AutoencoderKL": AUTOENCODER, "UNet2DModel": UNET}.items():
        present = {*inspect.signature(getattr(diffusers, name).__init__).parameters} - {"self"}
        assert not present - entries.honoured - entries.idle - entries.refused.keys(), name
        assert not (entries.honoured | entries.idle) & entries.refused.keys(), name


@pytest.mark.parametrize("name, setting, refused", [
    ("DDIMScheduler", {}, "clip_sample=true.*clipped"), ("DDPMScheduler", {}, "clip_sample=true"),
    ("DDIMScheduler", {"clip_sample": False, "thresholding": True}, "thresholding=true"),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "learned_range"}, "variance_type=learned_range"),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}, "variance_type=fixed_large"),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, "use_flow_sigmas"),
    ("UniPCMultistepScheduler", {"thresholding": True}, "thresholding"),
    ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas"),
    ("DDIMInverseScheduler", {}, "DDIMInverseScheduler")])
def test_what_is_not_reproduced_of_diffusers_is_refused_by_name(name, setting, refused):
    diffusers = pytest.importorskip("diffusers")
    with pytest.raises(ValueError, match=refused):
        from_diffusers(getattr(diffusers, name)(**setting))


def test_an_unknown_entry_is_refused_where_it_is_set():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.register_to_config(sharpness=2.0)
    with pytest.raises(ValueError, match="sharpness=2.0"):
        from_diffusers(scheduler)


def test_a_sampling_that_is_not_reproduced_is_refused():
    diffusers = pytest.importorskip("diffusers")
    for scheduler, steps in ((diffusers.DDIMScheduler(timestep_spacing="linspace"), 10),
                             (diffusers.DDPMScheduler(timestep_spacing="trailing"), 7)):
        with pytest.raises(ValueError, match="timestep_spacing"):
            sampling_levels(scheduler, steps)
    with pytest.raises(ValueError, match="PNDMScheduler"):
        sampling_levels(diffusers.PNDMScheduler(), 10)
    for name in ("use_karras_sigmas", "use_dynamic_shifting", "stochastic_sampling"):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**{name: True})
        assert from_diffusers(scheduler).levels == 1000
        with pytest.raises(ValueError, match=name):
            from_diffusers(scheduler, 10)


def test_from_diffusers_zero_terminal_snr_and_the_unknown():
    diffusers = pytest.importorskip("diffusers")
    s = from_diffusers(diffusers.DDIMScheduler(rescale_betas_zero_snr=True, clip_sample=False))
    assert s.alpha[-1] == 0 and s.sigma[-1] == 1

    class Odd:
        pass

    with pytest.raises(ValueError, match="Odd is none of the schedulers"):
        from_diffusers(Odd())
