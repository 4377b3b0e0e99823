"""Other trainers' runs as traces: equal to recording them here, and to diffusers' own steps with TRL's log-probs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dforce.align import check_on_policy, cps, record, replay, trace_of
from dforce.core.denoiser import Precond
from dforce.core.diffusers_schedule import from_diffusers, sampling_levels
from dforce.core.matrix import full_sequence
from dforce.core.noise import Noise
from dforce.core.schedule import flow, linear
from tests.align_bed import Vectors


class Pixels(nn.Module):
    """An answer that depends on image, timestep and class; images of 2 x 3 x 3."""

    causal = recurrent = False

    def __init__(self):
        super().__init__()
        self.outer = nn.Conv2d(2, 2, 3, padding=1)

    def init_state(self, batch, cond=None):
        return cond["static"]

    def forward(self, x, label, state, cond=None):
        shift = (label + state["class"][:, None]).to(x.dtype)[..., None, None, None] / 1000
        return self.outer(x[:, 0])[:, None] + shift, state


@pytest.mark.parametrize("path", ["ddim", "cps"])
def test_a_run_recorded_here_comes_back_from_its_latents_and_labels(path) -> None:
    schedule, how = (linear(100), {"eta": 0.7}) if path == "ddim" else (flow(100), {"std": cps(flow(100))})
    torch.manual_seed(0)
    model, cond = Precond(Vectors(3), schedule, "v").double(), {"static": {"class": torch.tensor([0, 2, 1])}}
    trace = record(model, schedule, full_sequence(schedule.grid(5), 1), torch.randn(3, 1, 3).double(), cond=cond,
                   noise=Noise(2), **how)
    for reduce, scale in (("sum", 1.0), ("mean", 3.0)):
        again = trace_of(trace.x[:, :, 0].unbind(1), schedule.label[trace.level[0, :-1, 0]].float(), model, schedule,
                         log_prob=(trace.log_prob[..., 0] / scale).unbind(1), reduce=reduce, cond=cond, **how)
        for name, one, other in zip(trace._fields, trace, again, strict=True):
            if isinstance(one, torch.Tensor):
                torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12, msg=name)
        assert check_on_policy(again, model, schedule).largest < 1e-9
    taken = trace_of(trace.x[:, :, 0].unbind(1), schedule.label[trace.level[:, :-1, 0]], model, schedule, cond=cond,
                     **how)
    torch.testing.assert_close(taken.log_prob, trace.log_prob, rtol=1e-9, atol=1e-9)


def test_the_steps_of_a_diffusers_scheduler_have_the_densities_of_trl() -> None:
    """DDIMScheduler.step at eta 1 down to its first timestep; TRL 0.23.1 takes the mean of log N over dimensions."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1)
    schedule = from_diffusers(scheduler)
    torch.manual_seed(0)
    model, cond = Precond(Pixels().double(), schedule, "eps"), {"static": {"class": torch.tensor([3, 40])}}
    scheduler.set_timesteps(5)
    latents, old = [torch.randn(2, 2, 3, 3).double()], []
    scheduler.alphas_cumprod = product = schedule.alpha[1:] ** 2  # its own is a product in float32
    scheduler.final_alpha_cumprod = product[0]
    for timestep in scheduler.timesteps:
        with torch.no_grad():
            noise, _ = model.net(latents[-1][:, None], timestep.expand(2, 1), cond["static"])
        now, after = product[int(timestep)], product[max(int(timestep) - 200, 0)]
        mean = scheduler.step(noise[:, 0], timestep, latents[-1], eta=0.0).prev_sample
        std = ((1 - after) / (1 - now) * (1 - now / after)).sqrt()
        mean = mean + noise[:, 0] * ((1 - after - std**2).sqrt() - (1 - after).sqrt())
        latents.append(mean + std * torch.randn(2, 2, 3, 3).double())
        nats = -((latents[-1] - mean) / std) ** 2 / 2 - std.log() - math.log(2 * math.pi) / 2
        old.append(nats.mean((1, 2, 3)))
    trace = trace_of(latents, scheduler.timesteps, model, schedule, log_prob=old, reduce="mean", last=1, cond=cond)
    assert trace.level[0, :, 0].tolist() == sampling_levels(scheduler, 5).tolist() and (trace.dims == 18).all()
    now = replay(trace, model, schedule)
    torch.testing.assert_close(now.log_prob, trace.log_prob, rtol=0, atol=18 * 1e-9)
    assert now.log_prob.requires_grad


def test_what_is_no_run_of_the_schedule_is_refused_in_one_line() -> None:
    schedule = linear(10)
    model, latents = Precond(Vectors(3), schedule, "v"), torch.randn(3, 2, 3)
    given = {"denoiser": model, "schedule": schedule}
    label = schedule.label[torch.tensor([9, 4])]
    for wrong, match in (
            ((latents, label[:1], {}), "timesteps must be"), ((latents, label + 0.5, {}), "no level of this schedule"),
            ((latents, label.flip(0), {}), "rise"), ((latents, label, {"eta": 0.0}), "no step of this run"),
            ((latents, label, {"log_prob": torch.zeros(3, 2)}), "log_prob must be")):
        with pytest.raises(ValueError, match=match) as error:
            trace_of(wrong[0], wrong[1], **given, **wrong[2])
        assert "\n" not in str(error.value)
