"""The ways to learn a policy from demonstrations, Diffusion Forcing and its rivals, as settings of the same code."""

from dataclasses import dataclass
from typing import Any

from dforce.core.loss import Levels, independent

BUILDABLE = ("Imitation",)  # by name, in a configuration


@dataclass(frozen=True)
class Imitation:
    """How a policy learns from demonstrations, and how it acts then; configs/imitation/*.yaml are such.

    name: of the method, in results. levels: of noise, in training.
    window, first, hold, cut: as `dforce.data.whole_episodes.WholeEpisodes` takes them.
    steps, regression: as `dforce.policy.forcing.ForcingPolicy` takes them.
    """

    name: str
    levels: Levels = independent
    window: int | None = None
    first: bool = False
    hold: int = 0
    cut: float = 0.0
    steps: int = 4
    regression: bool = False

    @property
    def sequences(self) -> dict[str, Any]:
        """Arguments of `WholeEpisodes`."""
        return {name: getattr(self, name) for name in ("window", "first", "hold", "cut")}

    @property
    def acting(self) -> dict[str, Any]:
        """Arguments of `ForcingPolicy`, which travel with a checkpoint."""
        return {name: getattr(self, name) for name in ("steps", "regression")}
