"""What is read of the configuration of a diffusers object: which entries are honoured, do not matter, or are refused.

diffusers is not imported here. An entry that no table names is refused where it differs from its default, so that a
setting which a later diffusers adds cannot be passed over in silence.
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple


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
