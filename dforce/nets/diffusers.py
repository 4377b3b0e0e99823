"""A pretrained image network of diffusers as a network of one token, whose noise label is its own timestep."""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]

# cond["static"] name -> argument of the UNet's forward, or entry of its added_cond_kwargs (Stable Diffusion XL)
ARGUMENTS = {"text": "encoder_hidden_states", "text_mask": "encoder_attention_mask", "class": "class_labels"}
ADDED = {"pooled": "text_embeds", "size": "time_ids"}


class PretrainedUNet(nn.Module):
    """A diffusers `UNet2DConditionModel` or `UNet2DModel` over one token, an image or latent [B, 1, C, H, W].

    Its label is its own timestep, so the schedule must be `from_diffusers(scheduler)`, `predict` the scheduler's
    prediction_type. cond["static"], carried by the state, [B, ...] each: "text" [B, L, D] becomes
    encoder_hidden_states, "text_mask" encoder_attention_mask, "class" class_labels, "pooled" and "size" the text_embeds
    and time_ids of Stable Diffusion XL. Inputs are cast to the precision of the weights. Not causal: an image has no
    past.
    """

    causal = False
    recurrent = False

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet
        self.accepted = set(inspect.signature(unet.forward).parameters)

    def init_state(self, batch: int, cond: Any = None) -> State:
        """The conditioning of `batch` images. Raises ValueError for unknown names and wrong numbers of rows."""
        static = dict((cond or {}).get("static") or {})
        known = {name for name, argument in ARGUMENTS.items() if argument in self.accepted}
        known |= set(ADDED) if "added_cond_kwargs" in self.accepted else set()
        if unknown := sorted(set(static) - known):
            raise ValueError(f"a {type(self.unet).__name__} takes cond['static'] of {sorted(known)}, got {unknown}")
        if "encoder_hidden_states" in self.accepted and "text" not in static:
            raise ValueError(f"a {type(self.unet).__name__} needs cond['static']['text'], got {sorted(static)}")
        for name, value in static.items():
            if len(value) != batch:
                raise ValueError(f"cond['static'][{name!r}] holds {len(value)} rows for a batch of {batch}")
        return static or {"none": next(self.unet.parameters()).new_zeros(batch, 0)}

    def forward(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> tuple[Tensor, State]:
        """x [B, 1, C, H, W], label [B, 1], timesteps -> out [B, 1, C, H, W]; the state comes back as it is."""
        if x.ndim != 5 or x.shape[1] != 1:
            raise ValueError(f"a pretrained image network takes one token, [B, 1, C, H, W], got {[*x.shape]}")
        dtype = next(self.unet.parameters()).dtype
        given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
        arguments: dict[str, Any] = {ARGUMENTS[name]: value for name, value in given.items() if name in ARGUMENTS}
        if added := {ADDED[name]: value for name, value in given.items() if name in ADDED}:
            arguments["added_cond_kwargs"] = added
        out = self.unet(x[:, 0].to(dtype), label[:, 0], return_dict=False, **arguments)[0]
        if out.shape[1] != x.shape[2]:
            raise ValueError(f"this UNet answers with {out.shape[1]} channels for {x.shape[2]}: one that also predicts "
                             "a variance, or that takes masks beside the image, is not supported")
        return out[:, None], state


def load_unet(path: str, *, subfolder: str | None = "unet", dtype: torch.dtype | None = None) -> PretrainedUNet:
    """The UNet in a diffusers pipeline folder (`subfolder` None: in its own), with text or without; no hub is asked."""
    diffusers = _diffusers(path)
    name = diffusers.UNet2DModel.load_config(path, subfolder=subfolder, local_files_only=True).get("_class_name")
    if name not in ("UNet2DConditionModel", "UNet2DModel"):
        raise ValueError(f"{path} holds a {name}; a UNet2DConditionModel or UNet2DModel is wanted")
    return PretrainedUNet(getattr(diffusers, name).from_pretrained(path, subfolder=subfolder, torch_dtype=dtype,
                                                                   local_files_only=True))


def load_scheduler(path: str) -> Any:
    """The scheduler in scheduler/ of a diffusers pipeline folder. Raises as `load_unet` does."""
    diffusers = _diffusers(path)
    config = diffusers.DDIMScheduler.load_config(path, subfolder="scheduler", local_files_only=True)
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if kind is None or not issubclass(kind, diffusers.SchedulerMixin):
        raise ValueError(f"{path} holds a {config.get('_class_name')}, which is no scheduler of diffusers")
    return kind.from_config(config)


def _diffusers(path: str) -> Any:
    """The package diffusers, for a folder that exists: of a name that is none it would ask a hub."""
    if not Path(path).is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    try:
        import diffusers
    except ImportError as error:
        raise ImportError("pretrained image networks need diffusers: pip install 'dforce[align]'",
                          name="diffusers") from error
    return diffusers
