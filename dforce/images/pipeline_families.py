"""The pipelines of diffusers that are read: one table of what each family has, and what is made of one."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dforce.align.lora_peft import peft_layers
from dforce.core.denoiser import Cond
from dforce.core.diffusers_schedule import SCHEDULERS, flow_sampling, from_diffusers, sampling_levels
from dforce.core.schedule import Schedule
from dforce.nets.diffusers import CALLS, PretrainedNet, base_of, diffusers_for

Size = tuple[int, int]  # height and width of an image
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts that are not loaded
CLEAN = all(find_spec(name) for name in ("bs4", "ftfy"))  # PixArt cleans its prompts where it can


class Family(NamedTuple):
    """One class of pipelines.

    parts: components without which it cannot run. answer: what its `encode_prompt` answers with, in order: names of
    cond["static"], "-name" those of the negative prompt, "" what is not used. constants: size -> further entries, the
    same for every image. sigmas: of a flow, the pipeline counts its sigmas itself, from 1 to 1 / steps.
    """

    parts: tuple[str, ...]
    answer: tuple[str, ...]
    constants: Callable[[Any, Size], Mapping[str, Sequence[float]]] = lambda pipe, size: {}
    sigmas: bool = False

    @property
    def network(self) -> str:
        """The component that denoises."""
        return next(part for part in self.parts if part in ("unet", "transformer"))


def _aspect(pipe: Any, size: Size) -> dict[str, Sequence[float]]:
    """What PixArt-alpha of 1024 pixels is told about the size; smaller ones are told nothing."""
    if not pipe.transformer.use_additional_conditions:
        return {}
    return {"resolution": size, "aspect": (size[0] / size[1],)}


_ONE, _TWO = ("tokenizer", "text_encoder", "vae"), ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "vae")
_POOLED = ("text", "-text", "pooled", "-pooled")
_PIXART = Family((*_ONE, "transformer"), ("text", "text_mask", "-text", "-text_mask"), _aspect)
FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family((*_ONE, "unet"), ("text", "-text")),
    "StableDiffusionXLPipeline": Family((*_TWO, "unet"), _POOLED, lambda pipe, size: {"size": [*size, 0, 0, *size]}),
    "StableDiffusion3Pipeline": Family((*_TWO, "transformer"), _POOLED),  # the third encoder, T5, may be missing
    "FluxPipeline": Family((*_TWO, "transformer"), ("text", "pooled", ""), sigmas=True),
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
}


def read_pipeline(source: Any, *, dtype: torch.dtype | None, hub: bool) -> tuple[Any, Family]:
    """The diffusers pipeline of a folder, or `source` itself, complete and of a known family; or ValueError."""
    if isinstance(source, (str, Path)):
        source = _loaded(str(source), dtype, hub)
    kind = type(source).__name__
    if kind not in FAMILIES:
        raise ValueError(f"{kind} is none of the pipelines that are read ({', '.join(FAMILIES)}, or a folder of a "
                         "UNet2DModel)")
    family = FAMILIES[kind]
    if missing := [part for part in family.parts if getattr(source, part, None) is None]:
        raise ValueError(f"this {kind} has no {', no '.join(missing)}: it cannot turn prompts into images")
    for name, part in source.components.items():
        if isinstance(part, nn.Module) and name != family.network:
            part.eval().requires_grad_(False)
    return source, family


def _loaded(place: str, dtype: torch.dtype | None, hub: bool) -> Any:
    more: dict[str, Any] = {}
    if Path(place).is_dir():
        index = _index(Path(place))
        more = {part: None for part, value in index.items() if part in UNUSED or value == [None, None]}
    elif not hub:
        raise FileNotFoundError(f"there is no folder {place}; hub=True asks the hub of Hugging Face for that name")
    diffusers = diffusers_for(None)
    try:
        return diffusers.DiffusionPipeline.from_pretrained(place, torch_dtype=dtype, local_files_only=not hub,
                                                           use_safetensors=True, **more)
    except Exception as error:  # diffusers, transformers and safetensors have errors of their own
        raise ValueError(f"cannot load the pipeline in {place}: {' '.join(str(error).split())[:300]}") from error


def _index(folder: Path) -> dict[str, Any]:
    """model_index.json, if it names a known family and no code but that of diffusers and transformers."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        kind = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no folder of a diffusers pipeline: its model_index.json cannot be read "
                         f"({type(error).__name__})") from error
    if kind not in FAMILIES:
        raise ValueError(f"{folder} holds a {kind}, none of the pipelines that are read ({', '.join(FAMILIES)})")
    for part, value in index.items():
        library = value[0] if isinstance(value, list) and value else None
        if library not in (None, "diffusers", "transformers", "stable_diffusion"):
            raise ValueError(f"{folder} takes its {part} from {library!r}; only diffusers and transformers are trusted")
        if library is not None and part in FAMILIES[kind].parts and not (folder / part).is_dir():
            raise ValueError(f"{folder} is incomplete: its part {part} is missing; copy the whole folder")
    return index


def network_of(pipe: Any, family: Family) -> PretrainedNet:
    """The denoising network of a pipeline in evaluation mode; ValueError for one that edits images.

    It is frozen, unless it brings adapters of peft, which learn as they do there.
    """
    module = getattr(pipe, family.network).eval()
    net, config = PretrainedNet(module if peft_layers(module) else module.requires_grad_(False)), base_of(module).config
    wanted = int(pipe.vae.config.latent_channels) * (4 if net.call.packed else 1)
    if config.in_channels != wanted:
        raise ValueError(f"this network takes {config.in_channels} channels where a latent has {wanted}: one for "
                         "inpainting or editing, which is not reproduced; take the pipeline that draws from text alone")
    if config.out_channels not in (None, wanted) and not net.call.halved:
        raise ValueError(f"this network answers with {config.out_channels} channels for {wanted}: it also predicts a "
                         "variance, which is not reproduced")
    for entry in ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type"):
        if (value := config.get(entry)) not in (None, "text_time"):
            raise ValueError(f"this network has {entry}={value}, whose conditioning is not reproduced")
    return net


def shape_of(pipe: Any, family: Family, size: Size | None) -> tuple[tuple[int, int, int], Size]:
    """Shape of a latent and size of an image in pixels; size: None for the size the network was made for."""
    config = base_of(getattr(pipe, family.network)).config
    shrink, side = int(pipe.vae_scale_factor), config.get("sample_size") or pipe.default_sample_size
    if size is None:
        height, width = (side, side) if isinstance(side, int) else side
        size = (height * shrink, width * shrink)
    step = shrink * (2 if CALLS[type(base_of(getattr(pipe, family.network))).__name__].packed else 1)
    if min(size) < step or any(length % step for length in size):
        raise ValueError(f"the sides of an image must be multiples of {step} pixels, got {size}")
    return (int(pipe.vae.config.latent_channels), size[0] // shrink, size[1] // shrink), size


class Prompts:
    """The text encoders of a pipeline: prompts -> conditioning, as its own `encode_prompt` makes it."""

    def __init__(self, pipe: Any, family: Family, size: Size):
        self.pipe, self.family, self.size = pipe, family, size
        self.takes = inspect.signature(pipe.encode_prompt).parameters

    def __call__(self, prompts: Sequence[Any]) -> Cond:
        """prompts: B texts -> {"static": {name: [B, ...]}}; ValueError for what is no text."""
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts) or not len(prompts):
            wrong = prompts if isinstance(prompts, str) else [type(prompt).__name__ for prompt in prompts][:4]
            raise ValueError(f"prompts must be a list of at least one text, got {wrong!r}")
        return self._cond(self._asked(list(prompts), do_classifier_free_guidance=False), "", len(prompts))

    def null(self, negative: str | None) -> Cond:
        """The conditioning of the negative prompt, one row; None: that of no prompt, as the family makes it."""
        if not any(name.startswith("-") for name in self.family.answer):
            return self([negative or ""])
        more = {} if negative is None else {"negative_prompt": [negative]}
        return self._cond(self._asked([""], do_classifier_free_guidance=True, **more), "-", 1)

    @torch.no_grad()
    def _asked(self, prompts: list[str], **more: Any) -> dict[str, Tensor]:
        given = {"prompt": prompts, "prompt_2": None, "prompt_3": None, "device": self.pipe.device,
                 "num_images_per_prompt": 1, "clean_caption": CLEAN, **more}
        answer = self.pipe.encode_prompt(**{name: value for name, value in given.items() if name in self.takes})
        return dict(zip(self.family.answer, answer, strict=True))

    def _cond(self, answer: Mapping[str, Tensor], sign: str, rows: int) -> Cond:
        names = [name for name in self.family.answer if name and not name.startswith("-")]
        static = {name: answer[sign + name] for name in names}
        for name, values in self.family.constants(self.pipe, self.size).items():
            static[name] = static["text"].new_tensor([*values]).expand(rows, -1)
        return {"static": static}


def schedule_of(pipe: Any, family: Family, shape: tuple[int, int, int]) -> tuple[
        Schedule, Callable[[int], Tensor], str, str]:
    """(table, levels of a number of steps, prediction_type or "flow", note) of a pipeline that draws latents of shape.

    Samplers with several steps or an order of their own (PNDM, Euler, DPM-Solver, UniPC) become the DDIM scheduler of
    the same table without clipping, which the note says. ValueError for what is not reproduced.
    """
    scheduler = pipe.scheduler
    config, kind, note = scheduler.config, type(scheduler).__name__, ""
    if kind not in SCHEDULERS:
        raise ValueError(f"the sampling of a {kind} is not reproduced here; give the pipeline another one before: "
                         "pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)")
    if kind.startswith("FlowMatch"):
        return *flow_sampling(scheduler, partial(_timesteps, config, family, _patches(pipe, shape))), "flow", ""
    table = from_diffusers(scheduler)
    if not kind.startswith(("DDIM", "DDPM")):
        if config.get("timestep_type", "discrete") != "discrete":
            raise ValueError(f"{kind} has timestep_type={config['timestep_type']}, which is not reproduced")
        spacing = config["timestep_spacing"] if config.get("timestep_spacing") != "linspace" else "leading"
        scheduler = diffusers_for(None).DDIMScheduler.from_config(config, clip_sample=False, timestep_spacing=spacing)
        note = (f"its {kind} is sampled as the DDIMScheduler of the same table, timestep_spacing={spacing!r}, "
                "clip_sample=False")
    levels = partial(sampling_levels, scheduler)
    levels(min(10, table.levels))
    return table, levels, str(config.prediction_type), note


def _patches(pipe: Any, shape: tuple[int, int, int]) -> int:
    """Into how many patches a transformer cuts a latent of this shape."""
    config = base_of(pipe.transformer).config
    side = 2 if CALLS[type(base_of(pipe.transformer)).__name__].packed else int(config.patch_size)
    return (shape[1] // side) * (shape[2] // side)


def _timesteps(config: Mapping[str, Any], family: Family, patches: int, steps: int) -> dict[str, Any]:
    """What a flow pipeline gives `set_timesteps`: its sigmas, and mu, which rises with the number of patches."""
    given: dict[str, Any] = {"sigmas": np.linspace(1.0, 1 / steps, steps)} if family.sigmas else {}
    if config.get("use_dynamic_shifting"):
        first, last = config["base_image_seq_len"], config["max_image_seq_len"]
        rise = (config["max_shift"] - config["base_shift"]) / (last - first)
        given["mu"] = config["base_shift"] + rise * (patches - first)
    return given


def distilled_guidance(pipe: Any, family: Family) -> Callable[[float], dict[str, Tensor]] | None:
    """Guidance scale -> what a network that takes it as an input is shown, one row; None for one that does not."""
    network = base_of(getattr(pipe, family.network))
    if network.config.get("guidance_embeds"):
        return lambda scale: {"guidance": torch.tensor([float(scale)], device=pipe.device)}
    if (width := network.config.get("time_cond_proj_dim")) is not None:
        return lambda scale: {"guidance": pipe.get_guidance_scale_embedding(torch.tensor([scale - 1.0]), width).to(
            pipe.device)}
    return None
