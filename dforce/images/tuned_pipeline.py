"""Pipelines that were tuned: opened, saved without a copy of what was not tuned, and put back onto their base."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dforce.align.lora import add_lowrank, without_adapters
from dforce.align.lora_diffusers import LORA_FILE, load_lora, save_lora
from dforce.align.tuning_run import Store
from dforce.guidance.wrapper import module_inside
from dforce.images.pipeline import Pipeline, load_pipeline
from dforce.runs.training_run import has_checkpoint
from dforce.train.atomic_folder import CheckpointError, sealed
from dforce.train.checkpoint import find, load_state, save
from dforce.train.precision import device_of
from dforce.train.state import Training, load_weights

DTYPES = {None: None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def open_pipeline(folder: Any, *, hub: bool = False, dtype: str | None = None, device: str | None = None,
                  size: Any = None, negative: str | None = None) -> Pipeline:
    """The pipeline that a configuration names; ValueError, one line, where it names none."""
    if not folder:
        raise ValueError("pipeline is needed: the folder of a diffusers pipeline, or with hub=true its name on the hub")
    if size is not None and not (isinstance(size, (list, tuple)) and len(size) == 2
                                 and all(isinstance(each, int) for each in size)):
        raise ValueError(f"size is [height, width] in pixels, got {size!r}")
    return load_pipeline(folder, dtype=DTYPES[dtype], device=device_of(device), negative=negative, hub=hub,
                         size=(size[0], size[1]) if size else None)


def adapt(network: nn.Module, rank: int | None, seed: int) -> None:
    """Low-rank adapters on the projections of attention, on every layer where there are none; None: all learns."""
    network.requires_grad_(rank is None)
    if rank is None:
        return
    attends = any(name.endswith(ATTENTION) for name, _ in network.named_modules())
    add_lowrank(network, rank=rank, generator=torch.Generator().manual_seed(seed),
                targets=(lambda name, _: name.endswith(ATTENTION)) if attends else None)


def pipeline_store(pipeline: Pipeline, source: str, *, whole: bool) -> Store:
    """Checkpoints of what learns, and in the run folder in diffusers' layout the adapters or the whole network."""
    network: Any = module_inside(pipeline.denoiser)
    layout = {"kind": "pipeline", "event_shape": [*pipeline.shape], "pipeline": source}

    def write(place: Path, training: Training, config: dict[str, Any], extra: dict[str, Any]) -> None:
        save(place, training.state(learnt=not whole), config=config, layout=layout, extra=extra)
        if not whole:
            save_lora(place.parents[1], network)
        else:
            module = network.net.module
            with sealed(place.parents[1] / network_folder(pipeline), about={"kind": "diffusers"}) as inside:
                module.save_pretrained(inside)
    return write


def network_folder(pipeline: Pipeline) -> str:
    """unet or transformer: where the folder of a diffusers pipeline has its denoising network."""
    network: Any = module_inside(pipeline.denoiser)
    return network.net.call.folder


def tuned_pipelines(pipeline: Pipeline, where: str) -> tuple[Pipeline, Pipeline]:
    """(base, tuned) of a run folder of `dforce align pipeline`, or of adapters in diffusers' layout; both share what
    was not tuned."""
    network = module_inside(pipeline.denoiser)
    if not has_checkpoint(Path(where)):
        if not (Path(where) / LORA_FILE).is_file() and not Path(where).is_file():
            raise CheckpointError(f"{where} is no run folder of `dforce align pipeline`, and holds no {LORA_FILE}")
        load_lora(where, network)
        network.requires_grad_(False)
        return pipeline._replace(denoiser=without_adapters(pipeline.denoiser)), pipeline
    folder = find(where)
    learnt = {name.removeprefix("denoiser."): value for name, value in load_state(folder).model.items()}
    ranks = {name.removesuffix(".lowrank.a"): len(value) for name, value in learnt.items()
             if name.endswith(".lowrank.a")}
    if not ranks:
        tuned = copy.deepcopy(network)
        load_weights(tuned, learnt, origin=f"the weights in {folder}")
        return pipeline, pipeline._replace(denoiser=tuned)  # type: ignore[arg-type]
    add_lowrank(network, rank=next(iter(ranks.values())), targets=lambda name, _: name in ranks)
    load_weights(network, {**network.state_dict(), **learnt}, origin=f"the adapters in {folder}")
    network.requires_grad_(False)
    return pipeline._replace(denoiser=without_adapters(pipeline.denoiser)), pipeline
