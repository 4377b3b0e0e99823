"""The table of a diffusers scheduler as a `Schedule`, and the levels of its sampling; its `step` is never called."""

import copy
from typing import Any

import torch
from torch import Tensor

from dforce.core.diffusers_config import SAMPLING, SCHEDULERS, refusals
from dforce.core.schedule import Schedule, from_betas


def from_diffusers(scheduler: Any, steps: int | None = None) -> Schedule:
    """The table that a diffusers scheduler was trained with, whatever its `set_timesteps` was called with.

    Schedulers with betas (DDPM, DDIM, PNDM, ...): level k is their timestep k - 1, and that timestep is the label;
    `sampling_levels` gives the levels of their own sampling. Flow-matching schedulers: sigma rises with the level,
    labels are num_train_timesteps sigma, which their networks expect.
    steps: of a FlowMatchEulerDiscreteScheduler, whose own sampling uses sigmas between the trained ones: the table of
        these, one level a step.

    Raises ValueError, by name, for a class or a setting that is not reproduced, such as clip_sample and thresholding,
    which change the estimates of x0. DDPM's clipping is `dforce.guidance.clipped.clipped` around the denoiser (and
    DDIM's, with use_clipped_model_output).
    """
    name = type(scheduler).__name__
    if name not in SCHEDULERS:
        raise ValueError(f"{name} is none of the schedulers whose table is read ({', '.join(SCHEDULERS)}); build a "
                         "Schedule from its alpha and sigma tables instead")
    _refuse(name, refusals(scheduler, SCHEDULERS[name]))
    if name.startswith("FlowMatch"):
        return _flow(scheduler, steps)
    if steps is not None:
        raise ValueError(f"steps is of FlowMatchEulerDiscreteScheduler; for a {name} take the levels of "
                         "sampling_levels(scheduler, steps) with from_diffusers(scheduler)")
    # From the betas in float64: the stored product is a float32 cumprod.
    exact = from_betas(scheduler.betas)
    return Schedule(exact.alpha, exact.sigma, label=(torch.arange(exact.levels + 1) - 1).clamp(min=0))


def _refuse(name: str, wrong: list[str]) -> None:
    if wrong:
        advice = ("; make the scheduler with clip_sample=False, and put dforce.guidance.clipped.clipped around the "
                  "denoiser if its estimates shall be clipped" if any("clip_sample" in each for each in wrong) else "")
        raise ValueError(f"{name} has {', '.join(wrong)}, which is not reproduced here{advice}")


def _flow(scheduler: Any, steps: int | None) -> Schedule:
    config, name = scheduler.config, type(scheduler).__name__
    count = int(config.num_train_timesteps)
    if steps is None:
        sigma = torch.arange(count + 1, dtype=torch.float64) / count
        if not config.get("use_dynamic_shifting"):
            sigma = config.shift * sigma / (1 + (config.shift - 1) * sigma)
    else:
        if name != "FlowMatchEulerDiscreteScheduler":
            raise ValueError(f"the sampling of a {name} is not reproduced, only that of a "
                             "FlowMatchEulerDiscreteScheduler; without steps its training table is read")
        _refuse(name, refusals(scheduler, SAMPLING, known=False))
        sigma = _after_set_timesteps(scheduler, steps).sigmas.double().flip(0)
    label = count * sigma
    label[0] = label[1]
    return Schedule(1 - sigma, sigma, label=label)


def sampling_levels(scheduler: Any, steps: int) -> Tensor:
    """[steps + 1] levels that a DDIM or DDPM scheduler visits in its own sampling, of `from_diffusers(scheduler)`.

    timestep_spacing and steps_offset are its own; with set_alpha_to_one=False the last level is 1, not 0. Raises
    ValueError for other schedulers, and for spacings whose steps do not end where the next one begins.
    """
    name = type(scheduler).__name__
    if not name.startswith(("DDIM", "DDPM")) or name not in SCHEDULERS:
        raise ValueError(f"the sampling of a {name} is not reproduced, only that of DDIM and DDPM schedulers")
    timestep = _after_set_timesteps(scheduler, steps).timesteps.long().cpu()
    stride = int(scheduler.config.num_train_timesteps) // steps  # its step goes from t to t - stride
    if (timestep.diff() != -stride).any() or timestep[-1] >= stride or timestep[0] >= len(scheduler.betas):
        raise ValueError(f"{name} with timestep_spacing={scheduler.config.timestep_spacing!r}, steps_offset="
                         f"{scheduler.config.steps_offset} and {steps} steps visits timesteps that its steps of "
                         f"{stride} do not lead to, which is not reproduced; take steps that divide "
                         f"{scheduler.config.num_train_timesteps}, or 'leading' spacing")
    last = int(scheduler.config.get("set_alpha_to_one") is False)
    return torch.cat([timestep + 1, torch.tensor([last])])


def _after_set_timesteps(scheduler: Any, steps: int) -> Any:
    """A copy on which `set_timesteps` was called: the caller's scheduler stays as it is."""
    fresh = copy.deepcopy(scheduler)
    fresh.set_timesteps(steps)
    return fresh
