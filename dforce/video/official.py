"""Checkpoints of the Diffusion Forcing repository (branch main, video) as checkpoints of dforce."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dforce.config import CHECKPOINT_ROOMS, build
from dforce.core.schedule import timesteps
from dforce.train.checkpoint import save, step_folder
from dforce.train.interrupts import stop_if_received
from dforce.train.state import TrainingState, check_weights

DIFFUSION, NETWORK = "diffusion_model.", "diffusion_model.model.module."
NAMES = tuple((re.compile(there), here) for there, here in (  # modules of the repository -> of `VideoUNet`
    (r"wrapper\.module\.(attn_block\.)?", ""), (r"\battn\.to_", ""),
    (r"^noise_level_pos_embedding\.1\.linear_1", "embed.0"), (r"^noise_level_pos_embedding\.1\.linear_2", "embed.2"),
    (r"^init_conv", "first"), (r"^init_temporal_attn", "begin"), (r"^mid_block", "middle"), (r"^out\.", "last."),
    (r"^down_blocks\.(\d+)\.0", r"down.\1"), (r"^down_blocks\.(\d+)\.1\.conv", r"down.\1.4"),
    (r"^up_blocks\.(\d+)", r"up.\1"), (r"^(up\.\d+\.4)\.conv", r"\1"),
    (r"in_layers\.0", "norm1"), (r"in_layers\.2", "conv1"), (r"out_layers\.0", "norm2"), (r"out_layers\.2", "conv2"),
    (r"emb_layers\.1", "level"), (r"skip_conv", "short")))


@dataclass(frozen=True)
class OfficialVideo:
    """Settings of `dforce data checkpoint`. The keys are explained in configs/verbs/data/checkpoint.yaml."""

    checkpoint: str
    size: int | tuple[int, int]
    window: int
    stack: int
    stride: int
    stabilisation: int
    predict: Literal["v", "x0", "eps"]
    masked: bool

    def write(self, folder: Path) -> str:
        """Writes the checkpoint into a run folder and says what it is. ValueError where the file is another model."""
        tensors, step = _read(Path(self.checkpoint))
        try:
            config, layout, weights = self._converted(tensors)
            with torch.device("meta"):
                net = build(config["net"], rooms=CHECKPOINT_ROOMS, event_shape=tuple(layout["event_shape"]))
            check_weights(net.state_dict(), weights, "it")
        except (KeyError, IndexError, ValueError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{self.checkpoint} is no video model of the Diffusion Forcing repository's main branch: "
                             f"{reason}") from error
        model = {f"denoiser.net.{name}": value.contiguous() for name, value in weights.items()}
        save(step_folder(folder / "checkpoints", step), TrainingState(step, model, {}, {}, {}), config=config,
             layout=layout)
        return (f"{sum(value.numel() for value in weights.values()):,} weights after {step:,} steps; frames "
                f"{'x'.join(map(str, layout['size']))}, schedule {config['schedule']['curve']}, predict={self.predict}")

    def _converted(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
        """Configuration, layout and the weights of `VideoUNet` by its names."""
        for name in ("data_mean", "data_std"):
            if not (tensors[name] == 0.5).all():
                raise ValueError(f"its {name} is {tensors[name].flatten()[0]:g}, that of frames in -1..1 is 0.5")
        network = {_named(name.removeprefix(NETWORK)): value for name, value in tensors.items()
                   if name.startswith(NETWORK)}
        weights = {name: value for name, value in network.items() if not name.endswith("freqs")}
        freqs = {name: value for name, value in network.items() if name.endswith("freqs")}
        size = 2 * len(freqs["rotary_time_pos_embedding.freqs"])
        rotary = 10_000.0 ** (-torch.arange(0, size, 2) / size)
        for name, value in freqs.items():
            if value.shape != rotary.shape or not torch.allclose(value, rotary, rtol=1e-4):
                raise ValueError(f"its {name} are not the usual rotary frequencies")
        table = tensors[DIFFUSION + "alphas_cumprod"]
        width, channels = weights["first.weight"].shape[:2]
        levels = len({name.split(".")[1] for name in weights if name.startswith("down.")})
        resolutions = range(levels)
        net = {"_target_": "dforce.nets.video_unet.VideoUNet", "width": width, "head_size": size,
               "multipliers": [len(weights[f"down.{i}.0.norm2.bias"]) // width for i in resolutions],
               "attended": [i for i in resolutions if f"down.{i}.3.qkv.weight" in weights],
               "heads": len(weights["begin.qkv.weight"]) // 3 // size, "window": self.window, "masked": self.masked,
               "clean_label": self.stabilisation - 1, "clean_scale": float(table[self.stabilisation - 1].sqrt())}
        # the repository's own sampling, one frame after the other
        recipe = {"method": "forcing", "steps": min(100, len(table)), "order": 1, "spacing": "index", "clamp": None,
                  "stabilise_std": 0.0}
        config = {"net": net, "schedule": _schedule(table), "predict": self.predict, "data": "", "recipe": recipe,
                  "frames": self.window * self.stack, "stack": self.stack, "stride": self.stride}
        sides = [self.size, self.size] if isinstance(self.size, int) else [*self.size]
        layout = {"kind": "video", "event_shape": [channels, *sides], "size": sides, "stride": self.stride,
                  "channels": channels // self.stack, "frames": self.window * self.stack, "stack": self.stack}
        return config, layout, weights


def _read(file: Path) -> tuple[dict[str, Tensor], int]:
    """The state dict of a Lightning checkpoint and its step. Nothing in the file runs; ValueError says what is wrong.

    A tensor is believed to be only as large as the file: it is mapped, and views that repeat numbers are refused.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        tensors, step = content["state_dict"], int(content.get("global_step", 0))
        if not all(isinstance(value, Tensor) and value.is_contiguous() for value in tensors.values()) or step < 0:
            raise ValueError("it holds no plain tensors")
    except Exception as error:  # of a file that others wrote, torch raises what it likes
        stop_if_received()
        reason = str(error).split("\n")[0][:160]
        raise ValueError(f"cannot read {file} as a Lightning checkpoint of tensors alone: {reason}") from error
    return tensors, step


def _named(name: str) -> str:
    for there, here in NAMES:
        name = there.sub(here, name)
    return name


def _schedule(table: Tensor) -> dict[str, Any]:
    """The node of the schedule whose alpha^2 at timesteps 0.. is `table`."""
    curves: tuple[Literal["sigmoid", "cosine", "linear"], ...] = ("sigmoid", "cosine", "linear")
    for curve in curves:
        if torch.allclose(timesteps(curve, len(table)).alpha[1:].square().float(), table, rtol=1e-4, atol=1e-7):
            return {"_target_": "dforce.core.schedule.timesteps", "curve": curve, "levels": len(table)}
    raise ValueError(f"its alphas_cumprod are of no schedule known here ({', '.join(curves)} with their defaults)")
