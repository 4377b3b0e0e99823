"""dforce: Diffusion Forcing. Everything is a sequence of tokens, each with its own noise level.

`import dforce` is lazy: torch is imported when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # for type checkers and editors: the same names as in the table below (tests/cli/test_main.py)
    from dforce.core.denoiser import Precond
    from dforce.core.diffusers_schedule import from_diffusers
    from dforce.core.elbo import elbo
    from dforce.core.loss import (corrupt, forcing_loss, fused_snr, independent, min_snr, shared, snr, teacher_forcing,
                                  v_weight)
    from dforce.core.matrix import autoregressive, full_sequence, pyramid
    from dforce.core.rollout import rollout
    from dforce.core.sample import generate, sample
    from dforce.core.schedule import Schedule, cosine, flow, from_betas, linear, sigmoid
    from dforce.core.step import advance
    from dforce.core.transition import Gaussian, transition
    from dforce.guidance.wrapper import classifier_free
    from dforce.guidance.energy import guided
    from dforce.guidance.inpaint import inpaint
    from dforce.guidance.monte_carlo import exact_tilt, monte_carlo
    from dforce.train.checkpoint import load, save
    from dforce.train.fit import fit
    from dforce.train.objectives import ForcingObjective

# module -> the names that it lends to the package
_PUBLIC = {
    "core.schedule": "Schedule from_betas linear cosine sigmoid flow",
    "core.diffusers_schedule": "from_diffusers",
    "core.transition": "Gaussian transition",
    "core.denoiser": "Precond",
    "core.matrix": "full_sequence autoregressive pyramid",
    "core.loss": "corrupt forcing_loss independent shared teacher_forcing snr min_snr v_weight fused_snr",
    "core.step": "advance",
    "core.sample": "sample generate",
    "core.rollout": "rollout",
    "core.elbo": "elbo",
    "guidance.energy": "guided",
    "guidance.wrapper": "classifier_free",
    "guidance.inpaint": "inpaint",
    "guidance.monte_carlo": "monte_carlo exact_tilt",
    "train.objectives": "ForcingObjective",
    "train.fit": "fit",
    "train.checkpoint": "save load",
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dforce' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dforce.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
