"""The fingerprint of a denoiser: a number for its structure, equal before and after training, unlike other models'."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from dforce.core.denoiser import Denoiser
from dforce.core.schedule import Schedule
from dforce.guidance.reporting import Reporting

PLAIN = (bool, int, float, str, type(None))


def fingerprint(denoiser: Denoiser, schedule: Schedule) -> int:
    """A hash of 63 bits of the structure of a policy: tables of the schedule, wrappers of guidance with their numbers,
    names and shapes of the weights. Not of their values, which change: `check_on_policy` compares those.
    """
    hasher = hashlib.sha256()
    for line in [*_tables(schedule), *_describe(denoiser)]:
        hasher.update(line.encode() + b"\n")
    return int.from_bytes(hasher.digest()[:8], "big") >> 1


def _describe(part: Any) -> list[str]:
    """Lines of text that differ for parts of a denoiser that differ."""
    kind = f"{type(part).__module__}.{type(part).__qualname__}"
    if isinstance(part, Reporting):
        return _describe(part.denoiser)
    if isinstance(part, PLAIN):
        return [repr(part)]
    if isinstance(part, Tensor):
        return [_content(part)]
    if isinstance(part, Schedule):
        return _tables(part)
    if isinstance(part, nn.Module):
        return _module(part, kind)
    if isinstance(part, dict):
        return [line for key in sorted(part, key=str) for line in (f"{kind}[{key}]", *_describe(part[key]))]
    if isinstance(part, (list, tuple)):
        return [kind, *(line for item in part for line in _describe(item))]
    if hasattr(part, "denoiser") and hasattr(part, "__dict__"):
        return [line for name, value in sorted(vars(part).items()) for line in (f"{kind}.{name}", *_describe(value))]
    return [f"{kind} {getattr(part, '__qualname__', '')}"]  # functions, energies, noise: by their names


def _module(module: nn.Module, kind: str) -> list[str]:
    settings = {name: value for name, value in vars(module).items()
           if name[0] != "_" and name != "training" and isinstance(value, PLAIN)}
    inner = [f"{name}: {type(child).__qualname__}" for name, child in module.named_modules()]
    weights = [f"{name} {[*value.shape]}" for name, value in module.named_parameters()]
    tables = [line for child in module.modules() if isinstance(child, Schedule) for line in _tables(child)]
    return [f"{kind} {sorted(settings.items())}", *inner, *weights, *tables]


def _tables(schedule: Schedule) -> list[str]:
    return [_content(torch.stack([schedule.alpha, schedule.sigma, schedule.label]))]


def _content(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return f"{[*tensor.shape]} {tensor.dtype} {hashlib.sha256(data).hexdigest()}"
