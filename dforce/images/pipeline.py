"""An image generator as one value, whoever trained it: ours, or a pretrained network of diffusers."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dforce.align.on_policy import Sampler
from dforce.core.denoiser import Cond, Denoiser, Precond
from dforce.core.diffusers_schedule import UNET, from_diffusers, refusals, sampling_levels
from dforce.core.schedule import Schedule
from dforce.guidance.wrapper import classifier_free, conditioned
from dforce.images.pipeline_families import (
    Prompts,
    Size,
    distilled_guidance,
    network_of,
    read_pipeline,
    schedule_of,
    shape_of,
)
from dforce.nets.autoencoder import Decode
from dforce.nets.diffusers import load_scheduler, load_unet

# prediction_type of a scheduler -> what a denoiser predicts
PREDICT: dict[str, Literal["eps", "v", "x0", "flow"]] = {
    "epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow": "flow"}


class Pipeline(NamedTuple):
    """What it takes to draw images, each one token."""

    denoiser: Denoiser
    schedule: Schedule
    shape: tuple[int, ...]              # (C, H, W)
    encode: Callable[[Sequence[Any]], Cond | None]  # prompts -> their conditioning
    null: Cond | None                   # that of no prompt, one row; None where there is none
    decode: Callable[[Tensor], Tensor]  # tokens [B, 1, C, H, W] -> images in [-1, 1]
    levels: Callable[[int], Tensor]     # number of steps -> levels [steps + 1] from K down to 0
    distilled: Callable[[float], dict[str, Tensor]] | None = None  # guidance scale -> input of a network that takes it

    def sampler(self, steps: int, *, guidance: float = 1.0, **how: Any) -> Sampler:
        """Draws tokens or records their runs; guidance: scale of classifier-free guidance; how: more of `Sampler`.

        A network that takes the scale as an input (Flux, consistency models) is shown it instead.
        """
        denoiser = self.denoiser
        if self.distilled is not None:
            denoiser = conditioned(denoiser, self.distilled(guidance))
        elif guidance != 1:
            if self.null is None:
                raise ValueError("classifier-free guidance wants a model that knows images without a prompt; take "
                                 "guidance=1")
            denoiser = classifier_free(denoiser, guidance, self.null)
        return Sampler(denoiser, self.schedule, self.levels(steps)[:, None], (1, *self.shape), **how)


def class_cond(labels: Tensor) -> Cond:
    """The conditioning of images of these classes, [B] integers; len(classes) is the null class."""
    return {"static": {"class": labels.long()}}


def load_pipeline(source: Any, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None,
                  size: Size | None = None, negative: str | None = None, hub: bool = False) -> Pipeline:
    """A pretrained pipeline of diffusers: prompts become images as in diffusers' own sampling without noise.

    source: its folder, or the pipeline itself, which is frozen where it stands; or, with hub=True, a name on the hub.
    dtype: of the weights; None as they are (of a folder float32). device: None where it is. size: (height, width) in
    pixels, None for that of the network. negative: the prompt that guidance leads away from, None for none.

    A note is printed where another sampler stands for the pipeline's. ValueError, one line, for what is not reproduced:
    networks that edit images, learned variances, other schedulers, missing parts; FileNotFoundError without a folder.
    """
    if isinstance(source, (str, Path)) and _holds_images(Path(source)):
        return from_unet(source, dtype=dtype, device=device)
    pipe, family = read_pipeline(source, dtype=dtype, hub=hub)
    if dtype is not None or device is not None:
        pipe.to(device=device, dtype=dtype)
    net = network_of(pipe, family)
    shape, size = shape_of(pipe, family, size)
    schedule, levels, kind, note = schedule_of(pipe, family, shape)
    if note:
        print(f"note: {note}")
    prompts, schedule = Prompts(pipe, family, size), schedule.to(pipe.device)
    return Pipeline(Precond(net, schedule, PREDICT[kind]), schedule, shape, prompts, prompts.null(negative),
                    Decode(pipe.vae), levels, distilled_guidance(pipe, family))


def _holds_images(folder: Path) -> bool:
    """Is it the folder of a UNet2DModel, of images without text?"""
    try:
        config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("_class_name") == "UNet2DModel"


def from_unet(folder: str | Path, *, dtype: torch.dtype | None = None,
              device: torch.device | str | None = None) -> Pipeline:
    """The pipeline of a diffusers folder with a `UNet2DModel` in unet/ and a scheduler in scheduler/, without any hub.

    Prompts are numbers of classes where the network has some. ValueError, by name, for what is not reproduced: text,
    clipping or thresholding of samples, a learned variance.
    """
    net, scheduler = load_unet(str(folder), dtype=dtype).to(device), load_scheduler(str(folder))
    kind = str(scheduler.config.get("prediction_type"))
    unet: Any = net.eval().requires_grad_(False).module
    unlike = {"a network of text": "text" in net.needed, "an autoencoder": any(
        (Path(folder) / part).is_dir() for part in ("vae", "vqvae")), f"prediction_type {kind}": kind not in PREDICT}
    wrong = [name for name, present in unlike.items() if present]
    if wrong or (wrong := refusals(unet, UNET)):
        raise ValueError(f"{folder} has {', '.join(wrong)}, which is not reproduced here")
    schedule, levels = from_diffusers(scheduler).to(device), partial(sampling_levels, scheduler)
    levels(min(10, schedule.levels))  # refuses a scheduler whose sampling is not reproduced
    unet = unet.config
    side = unet["sample_size"]
    height, width = (side, side) if isinstance(side, int) else side
    classes = unet["num_class_embeds"]

    def encode(prompts: Sequence[Any]) -> Cond | None:
        if not classes:
            return None
        strange = [each for each in prompts if not isinstance(each, int) or not 0 <= each < classes]
        if strange:
            raise ValueError(f"prompts of {folder} are numbers of classes, 0 to {classes - 1}, got {strange[0]!r}")
        return class_cond(torch.tensor(list(prompts)))

    return Pipeline(Precond(net, schedule, PREDICT[kind]), schedule, (unet["in_channels"], height, width), encode, None,
                    lambda x: x.clamp(-1, 1), levels)
