"""What planners are asked: where each robot is and where to, checked where it comes in."""

from typing import Any

import numpy as np

Request = tuple[np.ndarray, np.ndarray]


def checked_request(obs: Any, goal: Any, remaining: int, layout: dict[str, Any]) -> Request:
    """(obs [N, O], goal [N, G]) as arrays. ValueError for other shapes, numbers that are not finite, and remaining < 1.

    layout: of the checkpoint; its "observation" says how wide an observation is.
    """
    first, last = layout["observation"]
    obs, goal = _numbers("obs", obs), _numbers("goal", goal)
    if obs.ndim != 2 or obs.shape[1] != last - first or not len(obs):
        raise ValueError(f"obs must be [N, {last - first}], a row an episode, got {[*obs.shape]}; one observation is "
                         "obs[None]")
    if goal.ndim != 2 or len(goal) != len(obs) or not goal.shape[1]:
        raise ValueError(f"goal must be [N, G] with the {len(obs)} rows of obs, got {[*goal.shape]}")
    if remaining < 1:
        raise ValueError(f"remaining must be >= 1 environment steps, got {remaining}")
    return obs, goal


def _numbers(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{name} must hold real numbers, got {values.dtype}")
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(f"{name} must be finite, got {values[place]} at {[*place]}")
    return values
