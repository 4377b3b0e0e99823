"""The core's types under their hardest customers, each with tiny real parts.

(a) a pretrained diffusers UNet, (b) observation and action tokens in turn, (c) a causal transformer in all that a
sampler does, (d) a flow path sampled as an SDE with a std of its own, (e) denoisers that are not causal.
"""

from __future__ import annotations

import math

import pytest
import torch

from dforce.align.sde import flow_sde
from dforce.core.denoiser import Denoiser, Precond, slice_cond
from dforce.core.diffusers_schedule import from_diffusers
from dforce.core.loss import forcing_loss
from dforce.core.matrix import autoregressive, full_sequence, pyramid
from dforce.core.noise import Noise
from dforce.core.rollout import rollout
from dforce.core.sample import generate, sample
from dforce.core.schedule import cosine, flow
from dforce.core.tree import fork, leaves, reset, select
from dforce.guidance.energy import guided
from dforce.guidance.monte_carlo import monte_carlo
from dforce.guidance.wrapper import classifier_free, clipped
from dforce.nets.recurrent import RecurrentNet
from dforce.nets.temporal import TemporalUNet
from dforce.nets.transformer import TransformerNet

# ------------------------------------------------------------------------------------- (a) a pretrained diffusers UNet


def tiny_unet():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12, attention_head_dim=2).eval()


def texts():
    g = torch.Generator().manual_seed(1)
    return [{"static": {"text": torch.randn(2, 5, 12, generator=g)}} for _ in range(2)]


@pytest.mark.parametrize("kind, predict", [("epsilon", "eps"), ("v_prediction", "v"), ("sample", "x0")])
@pytest.mark.quick(1)
def test_a_pretrained_unet_samples_as_diffusers_does(kind, predict):
    from dforce.nets.diffusers import PretrainedNet

    unet, (cond, null), scale, steps = tiny_unet(), texts(), 5.0, 10
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
                              set_alpha_to_one=True, steps_offset=1, prediction_type=kind)
    scheduler.set_timesteps(steps)
    x = expected = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for t in scheduler.timesteps:
            text = torch.cat([null["static"]["text"], cond["static"]["text"]])
            without, with_text = unet(torch.cat([expected] * 2), t, text).sample.chunk(2)
            expected = scheduler.step(without + scale * (with_text - without), t, expected, eta=0.0).prev_sample

        schedule = from_diffusers(scheduler)
        denoiser = classifier_free(Precond(PretrainedNet(unet), schedule, predict), scale, null)
        grid = torch.cat([scheduler.timesteps + 1, torch.zeros(1, dtype=torch.long)])  # level k is timestep k - 1
        *_, last = sample(denoiser, schedule, grid[:, None], x[:, None], cond=cond, order=1, eta=0.0)
    torch.testing.assert_close(last.x[:, 0], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(last.x, generate(denoiser, schedule, grid[:, None], x[:, None], cond=cond, order=1))


@pytest.mark.slow
def test_a_pretrained_unet_under_guidance_forks_its_conditioning():
    from dforce.nets.diffusers import PretrainedNet

    schedule, (cond, null) = cosine(100), texts()
    denoiser = classifier_free(Precond(PretrainedNet(tiny_unet()), schedule, "v"), 3.0, null)
    bright = monte_carlo(denoiser, schedule, lambda x0: x0.mean((1, 2, 3, 4)), 3, scale=20.0)
    x = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    matrix = torch.tensor([[60], [40], [20], [0]])
    plain, tilted = (generate(one, schedule, matrix, x, cond=cond) for one in (denoiser, bright))
    assert (tilted.mean((1, 2, 3, 4)) > plain.mean((1, 2, 3, 4))).all()
    state = denoiser.init_state(2, cond)
    out, _ = denoiser(fork(x, 3), torch.full((6, 1), 50), fork(state, 3), None)  # the state carries all it needs
    torch.testing.assert_close(out[2:4], denoiser(x, torch.full((2, 1), 50), state, cond)[0], rtol=0, atol=1e-4)


def test_a_pretrained_unet_says_what_it_cannot_do(tmp_path):
    from dforce.nets.diffusers import PretrainedNet, load_unet

    schedule, (cond, _) = cosine(100), texts()
    net = PretrainedNet(tiny_unet())
    denoiser, x = Precond(net, schedule, "v"), torch.randn(2, 2, 4, 8, 8)
    state = denoiser.init_state(2, cond)
    with pytest.raises(ValueError, match="one token"):
        denoiser(x, torch.ones(2, 2, dtype=torch.long), state, cond)
    with pytest.raises(ValueError, match=r"needs cond\['static'\]\['text'\]"):
        denoiser.init_state(2)
    with pytest.raises(ValueError, match="takes cond.*prompt"):
        denoiser.init_state(2, {"static": {**cond["static"], "prompt": torch.zeros(2, 1)}})
    with pytest.raises(ValueError, match="2 rows for a batch of 3"):
        denoiser.init_state(3, cond)
    with pytest.raises(OSError):
        load_unet(str(tmp_path))


def test_a_pretrained_unet_from_a_folder_without_text(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from dforce.nets.diffusers import load_unet

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), num_class_embeds=4)
    unet.save_pretrained(tmp_path / "unet")
    net = load_unet(str(tmp_path))
    x, cond = torch.randn(2, 1, 3, 8, 8), {"static": {"class": torch.tensor([0, 3])}}
    out, _ = net(x, torch.full((2, 1), 7.0), net.init_state(2, cond), cond)
    torch.testing.assert_close(out[:, 0], unet.eval()(x[:, 0], 7, torch.tensor([0, 3])).sample)
    loss, _ = forcing_loss(Precond(net, cosine(100), "v"), cosine(100), x, cond=cond)
    loss.backward()  # what fine-tuning stands on
    assert all(p.grad is not None for p in net.parameters())


# ------------------------------------------------------------------------- (b) observation and action tokens in turn

OBSERVATION, ACTION = 0, 1


def kinds(batch: int, time: int) -> dict:
    """Which of the two a token is, in turn, starting with an observation."""
    kind = torch.nn.functional.one_hot(torch.arange(time) % 2, 2).float()
    return {"token": {"kind": kind.expand(batch, -1, -1)}, "static": {"start": torch.arange(batch)[:, None].float()}}


def robot(net: str, schedule):
    torch.manual_seed(0)
    sizes = {"static": {"start": 1}, "token": {"kind": 2}}
    return Precond(RecurrentNet((3,), width=32, **sizes) if net == "recurrent" else
                   TransformerNet((3,), width=32, depth=2, heads=2, context=6, **sizes), schedule)


@pytest.fixture(params=["recurrent", "transformer"])
def net(request):
    return request.param


def act(denoiser, schedule, state, x, cond):
    """The next action token from the state [B, 1, 3], and the state after it."""
    matrix = autoregressive(schedule.grid(4), 1)
    action = generate(denoiser, schedule, matrix, x, state=state, cond=cond)
    return action, denoiser.absorb(action, torch.zeros(len(x), 1, dtype=torch.long), state, cond)


def test_a_bad_observation_is_a_noisier_token(net):
    schedule = cosine(100)
    denoiser, g = robot(net, schedule), torch.Generator().manual_seed(1)
    x, cond = torch.randn(3, 4, 3, generator=g), kinds(3, 4)
    level = torch.tensor([[0, 0, 0, 100], [0, 0, 40, 100], [60, 0, 0, 100]])  # how bad, row by row
    with torch.no_grad():
        at_once, _ = denoiser(x, level, denoiser.init_state(3, cond), cond)
        state = denoiser.init_state(3, cond)
        for t in range(3):
            state = denoiser.absorb(x[:, t:t + 1], level[:, t:t + 1], state, slice_cond(cond, slice(t, t + 1)))
        in_turn, _ = denoiser(x[:, 3:], level[:, 3:], state, slice_cond(cond, slice(3, 4)))
    torch.testing.assert_close(in_turn, at_once[:, 3:], rtol=0, atol=1e-5)
    trusted, _ = denoiser(x, torch.where(level < 100, 0, level), denoiser.init_state(3, cond), cond)
    changed = (trusted - at_once)[:, 3].abs().amax(-1) > 1e-5
    assert changed.tolist() == [False, True, True]


def test_one_row_reset_in_mid_run_is_that_row_run_alone(net):
    schedule = cosine(100)
    denoiser, g = robot(net, schedule), torch.Generator().manual_seed(1)
    seen, drawn = torch.randn(2, 6, 3, 1, 3, generator=g)
    fresh, run, cond = denoiser.init_state(3, kinds(3, 2)), [], kinds(3, 2)
    observe, decide = slice_cond(cond, slice(0, 1)), slice_cond(cond, slice(1, 2))
    clean, state = torch.zeros(3, 1, dtype=torch.long), fresh
    for step in range(6):
        if step == 3:  # the middle robot begins a new episode
            state = reset(state, fresh, torch.tensor([False, True, False]))
        state = denoiser.absorb(seen[step], clean, state, observe)
        action, state = act(denoiser, schedule, state, drawn[step], decide)
        run.append(action)
    for row, first in ((0, 0), (1, 3), (2, 0)):
        one = slice(row, row + 1)
        alone = select(fresh, one)
        for step in range(first, 6):
            alone = denoiser.absorb(seen[step, one], clean[one], alone, select(observe, one))
            action, alone = act(denoiser, schedule, alone, drawn[step, one], select(decide, one))
            torch.testing.assert_close(action, run[step][one], rtol=0, atol=1e-4)


def test_padded_dimensions_of_the_smaller_token_do_not_count(net):
    schedule = cosine(100)
    denoiser, cond = robot(net, schedule), kinds(4, 6)
    mask = torch.ones(4, 6, 3, dtype=torch.bool)
    mask[:, ACTION::2, 2:] = False  # actions have two numbers, observations three
    x = torch.randn(4, 6, 3) * mask

    def loss(target):
        g = torch.Generator().manual_seed(1)
        return forcing_loss(denoiser, schedule, target, mask=mask, cond=cond, generator=g)[0]

    head = denoiser.net.head[-1]
    before = loss(x)
    with torch.no_grad():
        head.bias[2] += 1.0
    only_observations = loss(x)
    assert not torch.isclose(before, only_observations)
    mask[:, OBSERVATION::2, 2:] = False
    after = loss(x)
    with torch.no_grad():
        head.bias[2] -= 1.0
    assert torch.isclose(loss(x), after)  # with its dimension masked everywhere, an output may say anything


@pytest.mark.parametrize("path", ["auto", "rows"])
@pytest.mark.quick(1)
def test_classifier_free_guidance_on_the_conditioning_of_tokens(net, path):
    schedule = cosine(100)
    null = {"static": {"start": torch.zeros(1, 1)}, "token": {"kind": torch.zeros(1, 1, 2)}}
    denoiser, cond = classifier_free(robot(net, schedule), 2.0, null), kinds(2, 6)
    x, matrix = torch.randn(2, 6, 3), pyramid(schedule.grid(4), 6, 2)
    found, loop = (generate(denoiser, schedule, matrix, x, cond=cond, path=p) for p in (path, "double_loop"))
    torch.testing.assert_close(found, loop, rtol=0, atol=1e-4)
    forked = monte_carlo(denoiser, schedule, lambda x0: x0.sum((1, 2)), 2)
    assert torch.isfinite(generate(forked, schedule, matrix, x, cond=cond)).all()
    with pytest.raises(ValueError, match="one entry for all tokens"):
        classifier_free(robot(net, schedule), 2.0, cond)


# --------------------------------------------------------------------- (c) a causal transformer, wherever a GRU may go


def transformer(schedule, causal: bool = True):
    torch.manual_seed(0)
    net = TransformerNet((2,), width=32, depth=2, heads=2, context=5, static={"start": 2}, causal=causal)
    return Precond(net, schedule)


START = {"static": {"start": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}}


@pytest.mark.parametrize("wrap", [
    lambda d, s: d, lambda d, s: classifier_free(d, 2.0, {"static": {"start": torch.zeros(2, 2)}}),
    lambda d, s: clipped(d, -1, 1), lambda d, s: guided(d, s, lambda x0: x0.sum((1, 2)), 0.1),
    lambda d, s: monte_carlo(d, s, lambda x0: x0.sum((1, 2)), 1, scale=0.1)])
@pytest.mark.quick(2)
def test_every_wrapper_absorbs_and_gives_the_double_loop(wrap):
    schedule = cosine(50)
    denoiser = wrap(transformer(schedule), schedule)
    x = torch.randn(2, 8, 2, generator=torch.Generator().manual_seed(1))
    for matrix in (pyramid(schedule.grid(4), 8, 1), autoregressive(schedule.grid(4), 8)):
        rows, loop = (generate(denoiser, schedule, matrix, x, cond=START, path=path)
                      for path in ("rows", "double_loop"))
        torch.testing.assert_close(rows, loop, rtol=0, atol=2e-4)


def test_a_rollout_is_one_long_autoregressive_sample():
    schedule = cosine(50)
    denoiser, grid = transformer(schedule), schedule.grid(4)
    run = rollout(denoiser, schedule, autoregressive(grid, 3), denoiser.init_state(2, START), (2,), batch=2, cond=START)
    chunks = [next(run) for _ in range(4)]
    state = denoiser.init_state(2, START)
    for x, after in chunks:
        state = denoiser.absorb(x, torch.zeros(2, 3, dtype=torch.long), state, START)
        for one, other in zip(leaves(state), leaves(after), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    whole = torch.cat([x for x, _ in chunks], 1)
    x0, _ = denoiser(whole, torch.zeros(2, 12, dtype=torch.long), denoiser.init_state(2, START), START)
    assert torch.isfinite(x0).all() and chunks[-1][1]["position"].tolist() == [12, 12]


# ------------------------------------------------------------------- (d) a flow path as an SDE with a std of its own


class Normal(Denoiser):
    """The ideal denoiser of tokens ~ N(mean, std^2), each on its own."""

    causal = recurrent = True

    def __init__(self, schedule, mean: float, std: float):
        self.schedule, self.mean, self.std = schedule, mean, std

    def init_state(self, batch, cond=None):
        return torch.zeros(batch, 0)

    def absorb(self, x, level, state, cond=None):
        return state

    def __call__(self, x, level, state, cond=None):
        alpha, sigma = (table.float() for table in self.schedule(level, x))
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean), state


@pytest.mark.parametrize("order", [1, 2])
def test_a_flow_sde_has_the_marginals_of_its_ode(order):
    schedule = flow(1000)
    denoiser, matrix = Normal(schedule, 2.0, 0.5), full_sequence(schedule.grid(100, "index"), 2)
    x = Noise(1)(0, torch.arange(2), torch.empty(4000, 2, 1))
    moments = {}
    for name, std in (("ode", None), ("sde", flow_sde(schedule, 0.7))):
        moments[name] = []
        for step in sample(denoiser, schedule, matrix, x, order=order, eta=0.0, std=std, noise=Noise(2)):
            moments[name].append((step.x.mean(), step.x.std()))
            if std is not None:
                log_prob = step.kernel.log_prob(step.x)
                assert log_prob.shape == (4000, 2) and torch.isfinite(log_prob).all()
                assert (step.kernel.dims() == (step.to > 0)).all()  # all steps but the last have a density
    gap = (torch.tensor(moments["ode"]) - torch.tensor(moments["sde"])).abs()
    assert gap.max() < 0.03
    torch.testing.assert_close(torch.tensor(moments["sde"][-1]), torch.tensor([2.0, 0.5]), rtol=0, atol=0.03)


def test_the_last_step_of_a_flow_sde_has_a_density_where_min_std_asks_for_one():
    schedule = flow(100)
    denoiser, matrix = Normal(schedule, 2.0, 0.5), full_sequence(schedule.grid(4, "index"), 1)
    *_, last = sample(denoiser, schedule, matrix, torch.randn(8, 1, 1), std=flow_sde(schedule, 0.7), min_std=0.05)
    expected = torch.distributions.Normal(last.kernel.mean, 0.05).log_prob(last.x)[..., 0]
    torch.testing.assert_close(last.kernel.log_prob(last.x), expected)
    assert math.isclose(float(last.kernel.std.max()), 0.05, rel_tol=1e-6)


# ---------------------------------------------------------------------------------- (e) denoisers that are not causal


def temporal(schedule):
    torch.manual_seed(0)
    return Precond(TemporalUNet((2,), width=8, multipliers=(1, 2), static={"start": 2}), schedule)


@pytest.mark.parametrize("make", [temporal, lambda schedule: transformer(schedule, causal=False)])
@pytest.mark.parametrize("wrap", [
    lambda d, s: d, lambda d, s: guided(d, s, lambda x0: x0.sum((1, 2))),
    lambda d, s: classifier_free(d, 2.0, {"static": {"start": torch.zeros(2, 2)}}),
    lambda d, s: clipped(d, -1, 1), lambda d, s: monte_carlo(d, s, lambda x0: x0.sum((1, 2)), 2)])
@pytest.mark.quick(5)
def test_who_is_not_causal_neither_absorbs_nor_rolls_out(make, wrap):
    schedule = cosine(50)
    inner = make(schedule)
    denoiser = wrap(inner, schedule)
    assert not denoiser.causal and not denoiser.recurrent
    x, matrix = torch.randn(2, 6, 2), pyramid(schedule.grid(3), 6, 1)
    state = denoiser.init_state(2, START)
    with pytest.raises(ValueError, match=f"{type(inner.net).__name__} is not causal.*keep its finished tokens"):
        denoiser.absorb(x, torch.zeros(2, 6, dtype=torch.long), state, START)
    with pytest.raises(ValueError, match="takes a causal denoiser"):
        next(rollout(denoiser, schedule, matrix, state, (2,), batch=2, cond=START))
    with pytest.raises(ValueError, match="causal"):
        generate(denoiser, schedule, matrix, x, cond=START, path="rows")
    *_, last = sample(denoiser, schedule, matrix, x, cond=START)
    assert torch.equal(generate(denoiser, schedule, matrix, x, cond=START), last.x)
    with pytest.raises(ValueError, match="sequential futures need a causal"):
        monte_carlo(inner, schedule, lambda x0: x0.sum((1, 2)), 2, futures="sequential")
