"""Tensors and plain values in one safetensors file with a digest: no changed byte is loaded as other weights."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dforce.core.files import replacing
from dforce.train.atomic_folder import write_tensors
from dforce.train.interrupts import stop_if_received


def save_file_sealed(file: Path, tensors: Mapping[str, Tensor], about: Any) -> None:
    """Writes it completely or not at all. about: JSON-able."""
    text = json.dumps(about)
    with replacing(file) as partial:
        # one entry: safetensors writes several in any order, and equal files should have equal bytes
        write_tensors(partial, tensors, {"sealed": f"{_digest(tensors, text)} {text}"})


def load_file_sealed(file: Path, what: str) -> tuple[dict[str, Tensor], Any]:
    """Tensors, and what is said about them. ValueError for a file that is damaged, or that dforce did not write."""
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            # cloned, for where a tensor begins in memory decides which kernels see it: the last bit may differ
            tensors = {name: content.get_tensor(name).clone() for name in content.keys()}
        digest, _, text = metadata["sealed"].partition(" ")
        if digest != _digest(tensors, text):
            raise ValueError("its content does not match its own digest")
        return tensors, json.loads(text)
    except Exception as error:  # of a damaged file, safetensors raises what it likes
        stop_if_received()
        reason = "it has no digest" if isinstance(error, KeyError) else error
        raise ValueError(f"{file} holds no {what} that dforce wrote and can read: {reason}") from error


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {[*value.shape]}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
