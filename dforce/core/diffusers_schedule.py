"""The table of a diffusers scheduler as a `Schedule`, the levels of its sampling, and what of diffusers is refused."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dforce.core.schedule import Schedule, from_betas

FLOW_STEPS = 100  # of sampling, at most, in the table of a flow pipeline
SAME = 2e-7       # sigmas of float32 nearer to one another are one


def from_diffusers(scheduler: Any, steps: int | None = None) -> Schedule:
    """The table that a diffusers scheduler was trained with, whatever its `set_timesteps` was called with.

    Schedulers with betas (DDPM, DDIM, PNDM, ...): level k is their timestep k - 1, and that timestep is the label.
    Flow-matching schedulers: sigma rises with the level, labels are num_train_timesteps sigma.
    steps: of a FlowMatchEulerDiscreteScheduler, whose own sampling uses other sigmas: the table of these.
    ValueError, by name, for a setting that is not reproduced, such as clip_sample, which is `guidance.clipped` here.
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
        advice = ("; make the scheduler with clip_sample=False, and put dforce.guidance.wrapper.clipped around the "
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

    With set_alpha_to_one=False the last level is 1, not 0. ValueError where its steps do not end where the next begins.
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


def flow_sampling(scheduler: Any, given: Callable[[int], Mapping[str, Any]]) -> tuple[
        Schedule, Callable[[int], Tensor]]:
    """The table of a FlowMatchEulerDiscreteScheduler that holds its sampling, and steps -> its levels [steps + 1].

    given: steps -> what else the pipeline gives `set_timesteps`: sigmas of its own, or mu where shifting is dynamic.
    The table has the sigmas of 1 to `FLOW_STEPS` steps, each exactly, and those of num_train_timesteps steps, so that
    levels lie as evenly as the scheduler's own. ValueError, by name, for what is not reproduced.
    """
    name = type(scheduler).__name__
    if name != "FlowMatchEulerDiscreteScheduler":
        raise ValueError(f"the sampling of a {name} is not reproduced, only that of a FlowMatchEulerDiscreteScheduler")
    _refuse(name, refusals(scheduler, SCHEDULERS[name]) + refusals(scheduler, STOCHASTIC, known=False))
    count, fresh = int(scheduler.config.num_train_timesteps), copy.deepcopy(scheduler)

    def sigmas(steps: int) -> Tensor:
        fresh.set_timesteps(steps, **given(steps))
        return fresh.sigmas.double().cpu()

    every = torch.cat([sigmas(steps) for steps in (*range(1, FLOW_STEPS + 1), count)]).unique()
    table = every[torch.cat([every.new_ones(1), every.diff()]) > SAME]  # one of those that rounding alone sets apart

    def levels(steps: int) -> Tensor:
        if not 1 <= steps <= FLOW_STEPS:
            raise ValueError(f"steps must lie in 1..{FLOW_STEPS}, got {steps}")
        return (table - sigmas(steps)[:, None]).abs().argmin(1)

    label = count * table
    label[0] = label[1]
    return Schedule(1 - table, table, label=label), levels


def _after_set_timesteps(scheduler: Any, steps: int) -> Any:
    """A copy on which `set_timesteps` was called: the caller's scheduler stays as it is."""
    fresh = copy.deepcopy(scheduler)
    fresh.set_timesteps(steps)
    return fresh


class Entries(NamedTuple):
    """The entries of one class. honoured: reproduced. idle: without effect on what is read here, or the network's own,
    which diffusers builds. refused: entry -> the values at which it is without effect; any other is refused."""

    honoured: frozenset[str]
    idle: frozenset[str] = frozenset()
    refused: Mapping[str, tuple[Any, ...]] = {}


def _entries(honoured: str, idle: str = "", **refused: tuple[Any, ...]) -> Entries:
    return Entries(frozenset(honoured.split()), frozenset(idle.split()), refused)


_OFF = (False, None)
_BETAS = "num_train_timesteps beta_start beta_end beta_schedule trained_betas prediction_type"
_STEPS = " timestep_spacing steps_offset rescale_betas_zero_snr"
_CLIPPING = "clip_sample_range dynamic_thresholding_ratio sample_max_value"  # act where clipping is on only
_KARRAS = " use_karras_sigmas use_exponential_sigmas use_beta_sigmas"        # spacings of samplers that are not used
_MULTISTEP = (f"{_STEPS} solver_order solver_type lower_order_final final_sigmas_type time_shift_type flow_shift"
              f"{_KARRAS}")
_DDPM = _entries(_BETAS + _STEPS, _CLIPPING, clip_sample=_OFF, thresholding=_OFF,
                 variance_type=("fixed_small", "fixed_small_log"))
_DDIM = _entries(f"{_BETAS}{_STEPS} set_alpha_to_one", _CLIPPING, clip_sample=_OFF, thresholding=_OFF)
_SOLVER: dict[str, tuple[Any, ...]] = {"thresholding": _OFF, "use_flow_sigmas": _OFF, "use_dynamic_shifting": _OFF}

# Of schedulers with several steps or an order of their own only the training table is read.
SCHEDULERS = {
    "DDPMScheduler": _DDPM, "DDPMParallelScheduler": _DDPM, "DDIMScheduler": _DDIM, "DDIMParallelScheduler": _DDIM,
    "PNDMScheduler": _entries(_BETAS, f"{_STEPS} skip_prk_steps set_alpha_to_one"),
    "EulerDiscreteScheduler": _entries(
        f"{_BETAS} rescale_betas_zero_snr", f"{_STEPS}{_KARRAS} interpolation_type sigma_min sigma_max timestep_type "
        "final_sigmas_type"),
    "EulerAncestralDiscreteScheduler": _entries(f"{_BETAS} rescale_betas_zero_snr", _STEPS),
    "DPMSolverMultistepScheduler": _entries(
        f"{_BETAS} rescale_betas_zero_snr", f"{_CLIPPING}{_MULTISTEP} algorithm_type euler_at_final use_lu_lambdas "
        "lambda_min_clipped", variance_type=(None,), **_SOLVER),
    "UniPCMultistepScheduler": _entries(
        f"{_BETAS} rescale_betas_zero_snr", f"{_CLIPPING}{_MULTISTEP} predict_x0 disable_corrector solver_p sigma_min "
        "sigma_max shift_terminal", **_SOLVER),
    "FlowMatchEulerDiscreteScheduler": _entries(
        "num_train_timesteps shift use_dynamic_shifting",
        f"base_shift max_shift base_image_seq_len max_image_seq_len time_shift_type shift_terminal{_KARRAS} "
        "stochastic_sampling", invert_sigmas=_OFF),
    "FlowMatchHeunDiscreteScheduler": _entries("num_train_timesteps shift"),
}
# Beyond the table: what the sampling of a scheduler must not have where it is reproduced.
_FLOW_SAMPLING: dict[str, tuple[Any, ...]] = dict.fromkeys(
    ("use_dynamic_shifting", "shift_terminal", "stochastic_sampling", *_KARRAS.split()), _OFF)
SAMPLING = _entries("", "", **_FLOW_SAMPLING)
STOCHASTIC = _entries("", "", stochastic_sampling=_OFF)

_LAYERS = "down_block_types up_block_types layers_per_block act_fn norm_num_groups"
AUTOENCODER = _entries(
    "in_channels out_channels latent_channels block_out_channels scaling_factor shift_factor latents_mean latents_std",
    f"{_LAYERS} sample_size force_upcast use_quant_conv use_post_quant_conv mid_block_add_attention")
UNET = _entries(  # of images by class
    "sample_size in_channels out_channels num_class_embeds",
    f"{_LAYERS} center_input_sample time_embedding_type time_embedding_dim freq_shift flip_sin_to_cos mid_block_type "
    "block_out_channels mid_block_scale_factor downsample_padding downsample_type upsample_type dropout "
    "attention_head_dim attn_norm_num_groups norm_eps resnet_time_scale_shift add_attention num_train_timesteps",
    class_embed_type=(None,))


def refusals(owner: Any, entries: Entries, *, known: bool = True) -> list[str]:
    """What the configuration of the diffusers object `owner` asks for and is not reproduced: "name=value" each.

    known: also names entries that the table does not have, where they are set away from the default of their class.
    """
    config = {name: value for name, value in owner.config.items() if not name.startswith("_")}
    parameters = inspect.signature(type(owner).__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    wrong = [name for name, allowed in entries.refused.items() if name in config and config[name] not in allowed]
    if known:
        names = entries.honoured | entries.idle | entries.refused.keys()
        wrong += [name for name in config.keys() - names if config[name] != defaults.get(name, config)]
    return [f"{name}={str(config[name]).lower() if isinstance(config[name], bool) else config[name]}"
            for name in sorted(wrong)]
