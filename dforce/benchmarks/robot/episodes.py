"""Episodes of a robot task that a policy plays: how far it got, whether it stayed there, and what it did."""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from dforce.policy.corruption import Corruption, Faults
from dforce.policy.protocol import check_actions, stacked_observations

NEEDED = ("stage", "success", "decision_due")  # what `info` of such a task has


@dataclass
class RobotEpisode:
    """What became of one episode."""

    seed: int
    stage: int = 0          # the furthest that was reached
    reached: bool = False   # success at any step
    held: bool = False      # success at the end
    first: int | None = None  # step of the first success
    steps: int = 0
    actions: list[np.ndarray] = field(default_factory=list)  # that were done

    def saw(self, info: Mapping[str, Any]) -> None:
        """Takes note of the info after a step."""
        self.steps += 1
        self.stage, self.held = max(self.stage, int(info["stage"])), bool(info["success"])
        if self.held and not self.reached:
            self.reached, self.first = True, self.steps


class Remembered(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that goes back to a beginning that was prepared before: a swap's costs a sixth of its episode.

    beginnings: seed -> state, observation and info, shared by environments of the same task and settings.
    """

    def __init__(self, env: Any, beginnings: dict[int, tuple[Any, Any, dict[str, Any]]]):
        super().__init__(env)
        self._beginnings, self._reset = beginnings, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        task: Any = self.unwrapped
        if seed not in self._beginnings or options or not self._reset:
            observation, info = self.env.reset(seed=seed, options=options)
            self._reset = True
            if seed is None or options or not hasattr(task, "get_state"):
                return observation, info
            self._beginnings[seed] = task.get_state(), observation, info
        else:
            task.set_state(self._beginnings[seed][0])
        return copy.deepcopy(self._beginnings[seed][1:])


def play_episodes(policy: Any, envs: Sequence[Any], seeds: Sequence[int], corruption: Corruption,
                  ) -> tuple[list[RobotEpisode], list[float]]:
    """An episode for each seed, as many side by side as there are envs; and seconds of every call of `act`.

    policy: as `dforce.policy.protocol.Policy`, its `act` taking `missing` where the corruption tells of it.
    """
    episodes, seconds = [], []
    for begin in range(0, len(seeds), len(envs)):
        chosen = list(seeds[begin:begin + len(envs)])
        played, took = _play_together(policy, envs[:len(chosen)], chosen, corruption)
        episodes += played
        seconds += took
    return episodes, seconds


def _play_together(policy: Any, envs: Sequence[Any], seeds: Sequence[int], corruption: Corruption,
                   ) -> tuple[list[RobotEpisode], list[float]]:
    begun = [env.reset(seed=seed) for env, seed in zip(envs, seeds, strict=True)]
    observations, infos = [each for each, _ in begun], [info for _, info in begun]
    episodes, over = [RobotEpisode(seed) for seed in seeds], np.zeros(len(envs), dtype=bool)
    faults, state, seconds = Faults(corruption, seeds), policy.reset(len(envs)), []
    while not over.all():
        due = np.array([info["decision_due"] for info in infos])
        arrived, missing = faults.observed(stacked_observations(observations), due)
        start = time.perf_counter()
        planned, state = policy.act(arrived, state, **({} if missing is None else {"missing": missing}))
        seconds.append(time.perf_counter() - start)
        check_actions(planned, len(envs))
        actions = faults.executed(np.asarray(planned))
        for row in np.flatnonzero(~over).tolist():
            for action in actions[row]:
                for each in faults.disturbances(row, episodes[row].steps, bool(infos[row]["decision_due"])):
                    envs[row].unwrapped.disturb(*each)
                observations[row], _, terminated, truncated, infos[row] = envs[row].step(action)
                episodes[row].actions.append(action)
                episodes[row].saw(infos[row])
                over[row] = terminated or truncated
                if over[row]:
                    break
    return episodes, seconds


def play_expert(env: Any, seeds: Sequence[int]) -> list[RobotEpisode]:
    """The task's own expert on the same episodes; after its last action it repeats it."""
    episodes = []
    for seed in seeds:
        env.reset(seed=seed)
        episode, action, over = RobotEpisode(seed), None, False
        stream: Iterator[np.ndarray] = env.unwrapped.expert(np.random.default_rng([seed, 3]))
        while not over:
            action = next(stream, action)
            _, _, terminated, truncated, info = env.step(action)
            episode.saw(info)
            over = terminated or truncated
        episodes.append(episode)
    return episodes


def check_task(env: Any, layout: Mapping[str, Any]) -> None:
    """ValueError for an env that does not tell how far an episode got, or is not what the policy was trained for."""
    observation, info = env.reset(seed=0)
    lacking = [key for key in NEEDED if key not in info]
    if lacking:
        raise ValueError(f"{getattr(env, 'unwrapped', env)} is no task with stages: its info lacks "
                         f"{', '.join(lacking)}; give it these, or play episodes with "
                         "dforce.policy.evaluation.run_policy")
    parts, action = dict(layout["tokens"]["parts"]), layout["tokens"]["action"]
    if cameras := layout.get("cameras"):
        parts |= {name: (*size, 3) for name, size in cameras["sizes"].items()}
    seen = observation if isinstance(observation, Mapping) else {next(iter(parts)): observation}
    given = {key: value.shape if np.ndim(value) == 3 else int(np.size(value)) for key, value in seen.items()}
    if given != parts or env.action_space.shape != (action,):
        raise ValueError(f"the policy is for another robot: it is shown {parts} and does {action} numbers, {env} shows "
                         f"{given} and wants {env.action_space.shape}")
