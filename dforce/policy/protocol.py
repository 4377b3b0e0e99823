"""What a policy is asked: actions for every observation, with a state that the caller keeps between calls."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dforce.core.tree import State

Observation = np.ndarray | Mapping[str, np.ndarray]  # [N, O], or a dict of arrays [N, ...]


class Coders(Protocol):
    """What turns pictures into numbers; sizes: camera -> (height, width). `dforce.nets.pictures` has such."""

    sizes: dict[str, tuple[int, int]]
    numbers: int

    def encode(self, camera: str, pictures: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] -> [N, numbers]."""


class Policy(Protocol):
    """Acts in N episodes side by side; the rows of one call know nothing of one another.

    The state is a value, a nest of tensors with N rows each (`dforce.core.tree`): a caller resets the rows whose
    episode begins anew, forks it to try several futures, and drops the rows of episodes that are over.
    """

    def reset(self, n: int) -> State:
        """The state of n episodes that begin."""

    def act(self, observation: Observation, state: State) -> tuple[np.ndarray, State]:
        """The actions at this observation, [N, A], or several to be done in turn [N, C, A], and the state after it."""


def stacked_observations(observations: Sequence[Any]) -> Observation:
    """The observations of several environments as one, batch first."""
    if isinstance(observations[0], Mapping):
        return {key: np.stack([each[key] for each in observations]) for key in observations[0]}
    return np.stack(observations)


def observation_vectors(observation: Observation, parts: Mapping[str, int], rows: int) -> np.ndarray:
    """The observation of `rows` episodes as vectors [N, O] float32, its parts (name -> width) one after another.

    An observation of a single part may be an array. ValueError for one that is not made of these parts.
    """
    given = observation if isinstance(observation, Mapping) else dict.fromkeys(parts if len(parts) == 1 else (),
                                                                              observation)
    shapes = {name: np.shape(value) for name, value in given.items()}
    if {name: (*shape[:1], int(np.prod(shape[1:]))) for name, shape in shapes.items()} != {
            name: (rows, width) for name, width in parts.items()}:
        got = shapes or f"an array of shape {np.shape(observation)}"  # type: ignore[arg-type]
        raise ValueError(f"wanted are observations of {rows} episodes, made of {dict(parts)} numbers each, got {got}")
    return np.concatenate([np.asarray(given[name], dtype=np.float32).reshape(rows, -1) for name in parts], 1)


def encoded_pictures(observation: Observation, coders: Coders, rows: int, missing: Any,
                     device: Any) -> tuple[Observation, dict[str, np.ndarray]]:
    """The observation with numbers [N, n] in the place of every camera's pictures, and the pictures [N, H * W * 3],
    black in the rows where they are missing.

    missing: as `ForcingPolicy.act` takes it; a camera that is missing in every row may be left out. ValueError for
    pictures of another size or type, and for a camera that is lacking without being called missing.
    """
    given = dict(observation) if isinstance(observation, Mapping) else dict.fromkeys(
        coders.sizes if len(coders.sizes) == 1 else (), observation)
    seen = {}
    for name, size in coders.sizes.items():
        lost = missing.get(name) if isinstance(missing, Mapping) else missing
        gone = np.broadcast_to(False if lost is None else lost, rows)
        if name not in given and gone.all():
            given[name] = np.zeros((rows, *size, 3), np.uint8)
        if name not in given:
            raise ValueError(f"the observation has no pictures of the camera {name}, it has {', '.join(given)}; where "
                             f"the camera is off, say missing={{{name!r}: [True, ...]}}")
        pictures = np.asarray(given[name])
        if pictures.dtype != np.uint8 or pictures.shape != (rows, *size, 3):
            raise ValueError(f"pictures of the camera {name} are {pictures.dtype} {pictures.shape}, this policy wants "
                             f"uint8 {(rows, *size, 3)}, 0 to 255")
        flat = pictures.reshape(rows, -1)
        seen[name] = np.where(gone[:, None], 0, flat) if gone.any() else flat
        given[name] = coders.encode(name, torch.from_numpy(pictures).to(device)).cpu().numpy()
    return given, seen


def picture_numbers(pictures: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
    """A number for each row, [N] int64, that follows from its pictures, camera -> [N, H * W * 3]."""
    numbers = np.zeros(rows, np.int64)
    for flat in pictures.values():
        numbers = 31 * numbers + flat.astype(np.int64) @ (2 * np.arange(flat.shape[1]) + 1)
    return numbers


def check_actions(actions: Any, rows: int) -> None:
    """ValueError for what a policy answered, unless it is a row of finite actions for each of `rows` observations."""
    if np.shape(actions)[:1] != (rows,) or not np.isfinite(actions).all():
        raise ValueError(f"a policy answers {rows} observations with {rows} rows of finite actions, got "
                         f"{[*np.shape(actions)]}, {int((~np.isfinite(actions)).sum())} numbers of them not finite")
