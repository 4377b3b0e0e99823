"""Nothing asks a network: every loader, given what is not there, says so without a connection."""

import importlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MISSING = "stabilityai/stable-diffusion-2"  # what a hub would be asked for, and no folder here


def _of(module: str, name: str, *arguments: Any, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module(module), name)(*arguments, **more)


LOADERS = {
    "unet": _of("dforce.nets.diffusers", "load_unet", MISSING),
    "pipeline": _of("dforce.images.pipeline", "from_unet", MISSING),
    "any pipeline": _of("dforce.images.pipeline", "load_pipeline", MISSING),
    "lora": _of("dforce.align.lora_diffusers", "load_lora", MISSING, None),
    "scheduler": _of("dforce.nets.diffusers", "load_scheduler", MISSING),
    "latents": _of("dforce.video.latents", "load_latents", MISSING),
    "unet of a folder": _of("dforce.nets.diffusers", "load_unet", "folder"),
    "pipeline of a folder": _of("dforce.images.pipeline", "from_unet", "folder"),
    "any pipeline of a folder": _of("dforce.images.pipeline", "load_pipeline", "folder"),
    "scheduler of a folder": _of("dforce.nets.diffusers", "load_scheduler", "folder"),
    "latents of a folder": _of("dforce.video.latents", "load_latents", "folder"),
    "checkpoint": _of("dforce.train.checkpoint", "load", MISSING),
    "minari": _of("dforce.data", "load_episodes", "D4RL/pointmaze/umaze-v2"),
    "clips": _of("dforce.data", "VideoClips", MISSING, frames=2),
    "images": _of("dforce.data.images", "load_images", MISSING),
    "classifier": _of("dforce.images", "load_classifier", MISSING),
    "reward": _of("dforce.align.rewards.store", "load_reward", MISSING),
    "features": _of("dforce.video.metrics.features", "load_features", f"{MISSING}/features.safetensors"),
    "i3d": _of("dforce.video.metrics.published", "I3D", f"{MISSING}/i3d.pt"),
    "lpips": _of("dforce.video.metrics.published", "load_lpips", [f"{MISSING}/alexnet.pth", f"{MISSING}/alex.pth"]),
}


@pytest.fixture
def _unplugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a diffusers pipeline without weights, and sockets that no `except` hides the use of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    for part, kind in (("unet", "UNet2DModel"), ("scheduler", "NoSuchScheduler"), ("vae", "AutoencoderKL")):
        (tmp_path / "folder" / part).mkdir(parents=True)
        (tmp_path / "folder" / part / "config.json").write_text(json.dumps({"_class_name": kind}))
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda *_: pytest.fail("a socket was opened"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))


@pytest.mark.usefixtures("_unplugged")
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_a_loader_asks_no_network(load: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, OSError)):
        load()
