"""dforce: Diffusion Forcing. Everything is a sequence of tokens, each with its own noise level.

`import dforce` is lazy: torch is imported when a name is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dforce.checkpoint import load, save
    from dforce.denoiser import Precond
    from dforce.elbo import elbo
    from dforce.fit import fit
    from dforce.guidance import classifier_free, guided, inpaint
    from dforce.loss import (
        ForcingObjective,
        corrupt,
        forcing_loss,
        fused_snr,
        independent,
        min_snr,
        shared,
        snr,
        teacher_forcing,
        v_weight,
    )
    from dforce.matrix import autoregressive, full_sequence, pyramid
    from dforce.monte_carlo import monte_carlo
    from dforce.rollout import rollout
    from dforce.sample import advance, generate, sample
    from dforce.schedule import Schedule, cosine, flow, from_betas, from_diffusers, linear, sigmoid
    from dforce.transition import Gaussian, transition

# module -> the names it lends to the package, in reading order
_PUBLIC = {
    "schedule": ("Schedule", "from_betas", "linear", "cosine", "sigmoid", "flow", "from_diffusers"),
    "transition": ("Gaussian", "transition"),
    "denoiser": ("Precond",),
    "matrix": ("full_sequence", "autoregressive", "pyramid"),
    "loss": (
        "corrupt",
        "forcing_loss",
        "ForcingObjective",
        "independent",
        "shared",
        "teacher_forcing",
        "snr",
        "min_snr",
        "v_weight",
        "fused_snr",
    ),
    "sample": ("advance", "sample", "generate"),
    "rollout": ("rollout",),
    "elbo": ("elbo",),
    "guidance": ("guided", "classifier_free", "inpaint"),
    "monte_carlo": ("monte_carlo",),
    "fit": ("fit",),
    "checkpoint": ("save", "load"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [
    "Schedule",
    "from_betas",
    "linear",
    "cosine",
    "sigmoid",
    "flow",
    "from_diffusers",
    "Gaussian",
    "transition",
    "Precond",
    "full_sequence",
    "autoregressive",
    "pyramid",
    "corrupt",
    "forcing_loss",
    "ForcingObjective",
    "independent",
    "shared",
    "teacher_forcing",
    "snr",
    "min_snr",
    "v_weight",
    "fused_snr",
    "advance",
    "sample",
    "generate",
    "rollout",
    "elbo",
    "guided",
    "classifier_free",
    "inpaint",
    "monte_carlo",
    "fit",
    "save",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dforce' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dforce.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """`dforce.sample` is the function, whatever was imported first: importing the module `dforce.sample` (or
    `transition`, `rollout`, `fit`) would otherwise bind the module to the package under the function's name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
