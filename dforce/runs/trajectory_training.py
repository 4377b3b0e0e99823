"""Training on trajectories: a data set of vector observations and actions to a checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dforce.data import Episodes, Windows, load_episodes
from dforce.runs.folder import RunFolder
from dforce.runs.training_run import DenoiserTraining, Prepared, other_statistics


@dataclass(frozen=True, kw_only=True)
class TrajectoryTraining(DenoiserTraining):
    """A training of `dforce train`. The keys are explained in configs/verbs/train/train.yaml."""

    data: str
    horizon: int
    stack: int
    held_out: float
    cut_at: list[str] | None = None

    def prepare(self) -> Prepared:
        """Data, model and training loop, or ValueError."""
        windows, held_out = self._windows()
        lo, hi = windows.layout["observation"]
        layout = {**windows.layout, "event_shape": [*windows.event_shape], "static": {"start": hi - lo}}

        return self.begin(layout, windows.batch_at, what="the data", differing=other_statistics(windows.normalizer),
                          normalizer=windows.normalizer, shards=windows.virtual_shards,
                          validate=held_out and held_out.batch_at)

    def finish(self, prepared: Prepared, folder: RunFolder, newest: Path) -> None:
        """Nothing beside the checkpoints."""

    def _windows(self) -> tuple[Windows, Windows | None]:
        episodes = without_goals(load_episodes(self.data, cut_at=self.cut_at))
        shape: dict[str, Any] = {"horizon": self.horizon, "stack": self.stack, "batch": self.batch, "seed": self.seed,
                                 "held_out": self.held_out, "sequential": self.carry}
        windows = Windows(episodes, **shape)
        if not self.held_out:
            return windows, None
        return windows, Windows(episodes, split="val", normalizer=windows.normalizer, **shape)


def without_goals(episodes: Episodes) -> Episodes:
    """Of goal environments (keys observation, achieved_goal, desired_goal) the observation alone; else all.

    Where it is achieved_goal says again, and desired_goal is what a planner is asked for.
    """
    names = [name.removeprefix("observation.") for name in episodes.names()[0]]
    if {name.partition("[")[0] for name in names} != {"observation", "achieved_goal", "desired_goal"}:
        return episodes
    kept = [i for i, name in enumerate(names) if name.startswith("observation[")]
    print("note: the data are of a goal environment; of its observations, only the key `observation` is learnt")
    return replace(episodes, observations=episodes.observations[:, kept],
                   about={**episodes.about, "observation_names": [names[i] for i in kept]})
