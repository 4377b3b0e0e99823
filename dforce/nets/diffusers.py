"""A pretrained image network of diffusers as a network of one token, whose noise label is its own timestep."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

State = dict[str, Tensor]
GUIDANCE = 3.5  # shown to a network that takes a scale of guidance where none is given: diffusers' own for Flux


class Call(NamedTuple):
    """How the forward of one class of networks is called.

    image: name of the argument that takes the images. arguments: cond["static"] name -> argument. added: the same for
    entries of added_cond_kwargs. needed: names without which it cannot run. divisor: of timesteps.
    packed: latents enter as a row of 2x2 patches with their positions. halved: the second half of the answer, a
    variance, is not used. folder: its part of a pipeline.
    """

    image: str = "sample"
    arguments: Mapping[str, str] = {}
    added: Mapping[str, str] = {}
    needed: tuple[str, ...] = ()
    divisor: float = 1.0
    packed: bool = False
    halved: bool = False
    folder: str = "unet"


_TEXT = {"text": "encoder_hidden_states"}
_MASKED = {**_TEXT, "text_mask": "encoder_attention_mask"}
_POOLED = {**_TEXT, "pooled": "pooled_projections"}
CALLS: dict[str, Call] = {
    "UNet2DModel": Call(arguments={"class": "class_labels"}),
    "UNet2DConditionModel": Call(arguments={**_MASKED, "class": "class_labels", "guidance": "timestep_cond"},
                                 added={"pooled": "text_embeds", "size": "time_ids"}, needed=("text",)),
    "SD3Transformer2DModel": Call("hidden_states", _POOLED, needed=("text", "pooled"), folder="transformer"),
    "FluxTransformer2DModel": Call("hidden_states", {**_POOLED, "guidance": "guidance"}, needed=("text", "pooled"),
                                   divisor=1000.0, packed=True, folder="transformer"),
    "PixArtTransformer2DModel": Call("hidden_states", _MASKED, {"resolution": "resolution", "aspect": "aspect_ratio"},
                                     needed=("text", "text_mask"), halved=True, folder="transformer"),
}


class PretrainedNet(nn.Module):
    """A diffusers network of `CALLS` over one token, an image or latent [B, 1, C, H, W].

    Its label is its own timestep, so the schedule must be that of its scheduler, `predict` the scheduler's
    prediction_type. cond["static"], carried by the state, [B, ...] each: "text" [B, L, D] becomes
    encoder_hidden_states, "text_mask" encoder_attention_mask, "class" class_labels, "pooled" and "size" the text_embeds
    and time_ids of Stable Diffusion XL, "pooled" the pooled_projections of SD3 and Flux. Inputs are cast to the
    precision of the weights. Not causal: an image has no past.
    """

    causal = False
    recurrent = False

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.kind = type(base_of(module)).__name__
        if self.kind not in CALLS:
            raise ValueError(f"how a {self.kind} is called is not known here; a {', '.join(CALLS)} is wanted")
        self.call = CALLS[self.kind]
        config = base_of(module).config
        self.distilled = bool(config.get("guidance_embeds"))
        sized = config.get("addition_embed_type") == "text_time" or getattr(module, "use_additional_conditions", False)
        self.needed = (*self.call.needed, *(self.call.added if sized else ()))

    def init_state(self, batch: int, cond: Any = None) -> State:
        """The conditioning of `batch` images. Raises ValueError for unknown names and wrong numbers of rows."""
        static = dict((cond or {}).get("static") or {})
        if unknown := sorted(set(static) - self.call.arguments.keys() - self.call.added.keys()):
            known = sorted({*self.call.arguments, *self.call.added})
            raise ValueError(f"a {self.kind} takes cond['static'] of {known}, got {unknown}")
        if self.distilled and "guidance" not in static:
            static["guidance"] = torch.full((batch,), GUIDANCE, device=next(self.module.parameters()).device)
        for name in self.needed:
            if name not in static:
                raise ValueError(f"a {self.kind} needs cond['static'][{name!r}], got {sorted(static)}")
        for name, value in static.items():
            if len(value) != batch:
                raise ValueError(f"cond['static'][{name!r}] holds {len(value)} rows for a batch of {batch}")
        return static or {"none": next(self.module.parameters()).new_zeros(batch, 0)}

    def forward(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> tuple[Tensor, State]:
        """x [B, 1, C, H, W], label [B, 1], timesteps -> out [B, 1, C, H, W]; the state comes back as it is."""
        if x.ndim != 5 or x.shape[1] != 1:
            raise ValueError(f"a pretrained image network takes one token, [B, 1, C, H, W], got {[*x.shape]}")
        dtype, call = next(self.module.parameters()).dtype, self.call
        given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
        arguments: dict[str, Any] = {call.arguments[name]: value for name, value in given.items()
                                     if name in call.arguments}
        if added := {call.added[name]: value for name, value in given.items() if name in call.added}:
            arguments["added_cond_kwargs"] = added
        image = x[:, 0].to(dtype)
        if call.packed:
            arguments["img_ids"], arguments["txt_ids"] = positions(image), image.new_zeros(given["text"].shape[1], 3)
        arguments[call.image] = patches_of(image) if call.packed else image
        out = self.module(timestep=label[:, 0] / call.divisor, return_dict=False, **arguments)[0]
        if call.packed:
            out = image_of_patches(out, x.shape[-2])
        if call.halved and out.shape[1] == 2 * x.shape[2]:
            out = out.chunk(2, 1)[0]
        if out.shape[1] != x.shape[2]:
            raise ValueError(f"this network answers with {out.shape[1]} channels for {x.shape[2]}: one that also "
                             "predicts a variance, or that takes masks beside the image, is not supported")
        return out[:, None], state


def patches_of(x: Tensor) -> Tensor:
    """Latents [B, C, H, W] as a row of 2x2 patches [B, H W / 4, 4 C], as Flux takes them."""
    return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def image_of_patches(x: Tensor, height: int) -> Tensor:
    """The inverse of `patches_of`: [B, H W / 4, 4 C] -> [B, C, H, W]."""
    return rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=height // 2, p=2, q=2)


def positions(x: Tensor) -> Tensor:
    """[H W / 4, 3]: of each patch of latents [B, C, H, W] 0, its row and its column."""
    height, width = x.shape[-2] // 2, x.shape[-1] // 2
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).to(x)


def base_of(module: Any) -> Any:
    """The network inside the wrapper of peft, where there is one."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def load_unet(path: str, *, subfolder: str | None = "unet", dtype: torch.dtype | None = None) -> PretrainedNet:
    """The UNet in a diffusers pipeline folder (`subfolder` None: in its own), with text or without; no hub is asked."""
    diffusers = diffusers_for(path)
    name = diffusers.UNet2DModel.load_config(path, subfolder=subfolder, local_files_only=True).get("_class_name")
    if name not in ("UNet2DConditionModel", "UNet2DModel"):
        raise ValueError(f"{path} holds a {name}; a UNet2DConditionModel or UNet2DModel is wanted")
    return PretrainedNet(getattr(diffusers, name).from_pretrained(path, subfolder=subfolder, torch_dtype=dtype,
                                                                  local_files_only=True))


def load_scheduler(path: str) -> Any:
    """The scheduler in scheduler/ of a diffusers pipeline folder. Raises as `load_unet` does."""
    diffusers = diffusers_for(path)
    config = diffusers.DDIMScheduler.load_config(path, subfolder="scheduler", local_files_only=True)
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if kind is None or not issubclass(kind, diffusers.SchedulerMixin):
        raise ValueError(f"{path} holds a {config.get('_class_name')}, which is no scheduler of diffusers")
    return kind.from_config(config)


def diffusers_for(path: str | None) -> Any:
    """The package diffusers, for a folder that exists (None: for none): of a name that is none it would ask a hub."""
    if path is not None and not Path(path).is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    try:
        import diffusers
    except ImportError as error:
        raise ImportError("pretrained image networks need diffusers: pip install 'dforce[align]'",
                          name="diffusers") from error
    return diffusers
