"""Adapters of peft, on a network that the user brings: found, and switched off for a while."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def peft_layers(model: nn.Module) -> dict[str, Any]:
    """Name -> layer of the layers of `model` that peft wrapped; none where peft was never imported."""
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


@contextmanager
def peft_disabled(model: nn.Module) -> Iterator[None]:
    """Inside, peft's adapters are off; they learn and are active afterwards as they were before."""
    layers = [layer for layer in peft_layers(model).values() if not layer.disable_adapters]
    learning = [(weight, weight.requires_grad) for layer in layers for weight in layer.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for weight, learns in learning:
            weight.requires_grad_(learns)
