"""Demonstrations of the robot tasks by their scripted experts, kept as a Minari dataset."""

import copy
import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np

from dforce.data.minari import kept, save_buffers
from dforce.envs import ROBOT_TASKS

OPTIONS = {"noise", "span", "objects"}
TAKES: dict[str, set[str]] = {"swap": {"noise", "span"}, "pusht": set()}  # which of them a task has; else all
PERIOD, EXPERT = 0.1, 1  # s between actions; key of the expert's random numbers beside an episode's seed


class Demonstration(NamedTuple):
    """An episode of the expert.

    success: at its end, within the environment's steps. arrays: observations, actions, rewards, infos and flags as
    Minari stores them.
    """

    seed: int
    success: bool
    steps: int
    arrays: dict[str, Any]


@dataclass(frozen=True)
class RobotGeneration:
    """Settings of generated demonstrations.

    task: one of `ROBOT_TASKS`. episodes: with success, of seeds `seed`, `seed` + 1, ...; those without are left out.
    observations, image_size, noise, span, objects: of the environment; None is its own default.
    tail: steps of rest after the last decision, so that a policy learns to stop. processes: that share the work; what
    they make is equal bit for bit. name: of the data set, None is robot/<task>-<observations>-v0, with span and objects
    where they are given.
    """

    task: Literal["swap", "remember_color", "remember_place", "count", "pusht"]
    episodes: int = 300
    observations: Literal["low_dim", "image", "mixed"] = "low_dim"
    image_size: int | None = None
    noise: float | None = None
    span: int | None = None
    objects: int | None = None
    tail: int = 60
    seed: int = 0
    processes: int = 1
    name: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if min(self.episodes, self.processes) < 1 or min(self.seed, self.tail) < 0:
            raise ValueError(f"episodes and processes are at least 1, seed and tail at least 0, got {self.episodes}, "
                             f"{self.processes}, {self.seed}, {self.tail}")
        strange = {key for key in OPTIONS if getattr(self, key) is not None} - TAKES.get(self.task, OPTIONS)
        if strange:
            raise ValueError(f"task={self.task} takes no {', '.join(sorted(strange))}: leave it null")

    @property
    def dataset(self) -> str:
        """The data set's name."""
        given = [f"{key}{getattr(self, key)}" for key in ("span", "objects") if getattr(self, key) is not None]
        return self.name or f"robot/{'-'.join([self.task, *given, self.observations]).replace('_', '-')}-v0"

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the environment."""
        keys = "observations", "image_size", "noise", "span", "objects"
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}

    def make(self, report: Callable[[Demonstration], object]) -> bool:
        """Generates the data set unless an equal one exists; returns whether it did.

        report: is given every episode, also those that are left out. The data set appears complete, or not at all.
        ValueError where another one of that name exists, unless `overwrite`.
        """
        env = make_task(self.task, **self.settings)
        about = {"env": ROBOT_TASKS[self.task], "dt": PERIOD, "action_names": env.action_names, **asdict(self)}
        about = {key: value for key, value in about.items() if key not in ("processes", "overwrite", "name")}
        if self.observations == "low_dim":
            about["observation_names"] = env.observation_names
        if kept(self.dataset, about, overwrite=self.overwrite):
            return False
        import gymnasium
        from minari.data_collector import EpisodeBuffer

        spec = copy.deepcopy(gymnasium.spec(ROBOT_TASKS[self.task]))
        spec.kwargs = self.settings

        def buffers() -> Iterator[EpisodeBuffer]:
            number = itertools.count()
            for played in self.demonstrations():
                report(played)
                if played.success:
                    yield EpisodeBuffer(id=next(number), seed=played.seed, **played.arrays)

        save_buffers(self.dataset, buffers(), env=spec, about=about, overwrite=self.overwrite, author="dforce",
                     algorithm_name="scripted expert", description=f"{spec.id}, demonstrated by its expert.")
        return True

    def demonstrations(self) -> Iterator[Demonstration]:
        """Episodes in the order of seeds until `episodes` succeed; RuntimeError when more fail than succeed."""
        play = partial(demonstrate, self.task, self.settings, self.tail)
        wanted, failures, seed = self.episodes, 0, self.seed
        with _mapping(self.processes) as mapping:
            while wanted:
                seeds = range(seed, seed := seed + wanted)
                for played in mapping(play, seeds):
                    wanted -= played.success
                    failures += not played.success
                    if failures > self.episodes + 10:
                        raise RuntimeError(f"the expert of {self.task} fails: {failures} episodes without success, the "
                                           f"last of them of seed {played.seed}")
                    yield played

    def film(self) -> Iterator[np.ndarray]:
        """uint8 [240, W, 3], the first episode as its cameras see it. RuntimeError where nothing can be drawn."""
        env = make_task(self.task, **self.settings, render_mode="rgb_array")
        env.reset(seed=self.seed)
        yield env.render()
        for action in env.expert(np.random.default_rng([self.seed, EXPERT]), self.tail):
            env.step(action)
            yield env.render()
        env.close()


def make_task(task: str, **settings: Any) -> Any:
    """The environment of a task, without wrappers."""
    import gymnasium

    return gymnasium.make(ROBOT_TASKS[task], disable_env_checker=True, **settings).unwrapped


def demonstrate(task: str, settings: Mapping[str, Any], tail: int, seed: int) -> Demonstration:
    """An episode of the task's expert, and `tail` steps of rest after it; a function of its arguments alone."""
    env = _shared(task, tuple(settings.items()))
    observation, info = env.reset(seed=seed)
    observations, infos, actions, rewards = [observation], [info], [], []
    for action in env.expert(np.random.default_rng([seed, EXPERT]), tail):
        actions.append(np.asarray(action, np.float32))
        observation, reward, _, _, info = env.step(actions[-1])
        observations.append(observation)
        rewards.append(reward)
        infos.append(info)
    last = np.arange(len(actions)) == len(actions) - 1
    return Demonstration(seed, info["success"] and len(actions) <= env.max_steps, len(actions), {
        "observations": _stack(observations), "actions": np.stack(actions), "rewards": np.array(rewards),
        "terminations": np.zeros(len(actions), bool), "truncations": last, "infos": _stack(infos)})


def _stack(rows: Sequence[Any]) -> Any:
    if isinstance(rows[0], Mapping):
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return np.stack(rows)


@lru_cache(maxsize=1)
def _shared(task: str, settings: tuple) -> Any:
    """The environment of this process."""
    return make_task(task, **dict(settings))


@contextmanager
def _mapping(processes: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map`, shared by several processes where there are."""
    if processes == 1:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield pool.imap
