"""The ways to learn a policy from demonstrations, Diffusion Forcing and its rivals, as settings of the same code."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from dforce.core.loss import Levels, independent

BUILDABLE = ("Imitation", "PictureCoding", "Receding")  # by name, in a configuration


@dataclass(frozen=True)
class Receding:
    """Plans that reach further than they are followed.

    stride, past: as `dforce.data.whole_episodes.WholeEpisodes` takes them. The others: as
    `dforce.policy.receding.RecedingPolicy` takes them.
    """

    stride: int
    execute: int
    past: int = 0
    order: Literal[1, 2] = 2
    spacing: Literal["log_snr", "index"] = "log_snr"
    clip: float | None = None
    ensemble: float | None = None
    lost: Literal["noise", "last"] = "noise"


@dataclass(frozen=True)
class Imitation:
    """How a policy learns from demonstrations, and how it acts then; configs/imitation/*.yaml are such.

    name: of the method, in results. levels: of noise, in training.
    window, first, hold, cut, limits: as `dforce.data.whole_episodes.WholeEpisodes` takes them.
    steps, regression: as `dforce.policy.forcing.ForcingPolicy` takes them. receding: None follows plans to their ends.
    """

    name: str
    levels: Levels = independent
    window: int | None = None
    first: bool = False
    hold: int = 0
    cut: float = 0.0
    steps: int = 4
    regression: bool = False
    limits: bool = False
    receding: Receding | None = None

    @property
    def sequences(self) -> dict[str, Any]:
        """Arguments of `WholeEpisodes`."""
        plans = {} if self.receding is None else {"stride": self.receding.stride, "past": self.receding.past}
        return {name: getattr(self, name) for name in ("window", "first", "hold", "cut", "limits")} | plans

    @property
    def acting(self) -> dict[str, Any]:
        """Arguments of `ForcingPolicy` or `RecedingPolicy`, which travel with a checkpoint."""
        plans = {} if self.receding is None else asdict(self.receding)
        return {"steps": self.steps, "regression": self.regression} | {
            name: value for name, value in plans.items() if name not in ("stride", "past")}


@dataclass(frozen=True)
class PictureCoding:
    """How pictures of cameras become numbers: `dforce.runs.picture_coding` trains the coders.

    side: pixels that a picture is brought to. colors: whose place and area are three numbers each; they are found by
    k-means among what moves. width: further numbers, of a convolutional net. channels: of its first layer. steps: of
    training, for each camera. batch: pictures a step. lr: of the step.
    From all the numbers the picture is drawn again; the squared error of a pixel is weighted by its variance within
    episodes, so that what never moves counts for nothing.
    """

    colors: int = 3
    width: int = 16
    side: int = 64
    channels: int = 16
    steps: int = 1000
    batch: int = 32
    lr: float = 3e-3
