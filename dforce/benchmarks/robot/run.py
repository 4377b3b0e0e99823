"""`dforce evaluate robot`: a policy's success by stage, under faults, against others on the same episodes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dforce.benchmarks.robot.episodes import Remembered, RobotEpisode, check_task, play_episodes, play_expert
from dforce.benchmarks.robot.film import write_films
from dforce.data import load_episodes
from dforce.policy.corruption import Corruption
from dforce.policy.demonstration import NearestDemonstration
from dforce.policy.evaluation import BLOCK
from dforce.report.rows import Row, difference_row, make_row
from dforce.report.statistics import wilson_interval
from dforce.report.terminal import terminal_table
from dforce.runs.folder import RunFolder, Ticker
from dforce.runs.imitation import load_policy, played_task

LATENCY = 200      # calls of `act` that are timed
EXPERT, NEAREST = "expert", "nearest demonstration"


@dataclass(frozen=True)
class RobotEvaluation:
    """The settings of `dforce evaluate robot`; configs/verbs/evaluate/robot.yaml says what each does."""

    checkpoint: str | tuple[str, ...]
    corruptions: dict[str, Corruption]
    episodes: int
    seed: int
    copies: int
    references: bool
    film: bool
    only: tuple[str, ...] | None = None
    env: str | None = None
    data: str | None = None
    steps: int | None = None
    execute: int | None = None
    raw: bool = False
    device: Any = "cpu"
    trust: Any = None

    def prepare(self) -> Callable[[RunFolder], None]:
        """All that can be refused before a run begins; then play(folder)."""
        if unknown := set(self.only or ()) - set(self.corruptions):
            raise ValueError(f"only={sorted(unknown)}: the corruptions are {', '.join(self.corruptions)}")
        places = [self.checkpoint] if isinstance(self.checkpoint, str) else list(self.checkpoint)
        layouts = [self._policy(place)[1] for place in places]
        name, make = played_task(layouts[0], self.env)
        beginnings: dict[int, Any] = {}
        envs = [Remembered(make(), beginnings) for _ in range(min(self.copies, self.episodes))]
        for layout in layouts:
            check_task(envs[0], layout)
        corruptions = self._suiting(layouts[0]["tokens"]["parts"], envs[0])
        seeds = [BLOCK * (self.seed + 1) + number for number in range(self.episodes)]

        def play(folder: RunFolder) -> None:
            rows = self._reference_rows(name, envs, seeds, layouts[0])
            methods = dict(zip(_distinct([layout["method"] for layout in layouts]), places, strict=True))
            first = self._play(folder, name, methods, envs, seeds, rows, corruptions)
            folder.results(rows, summary=_summary(rows, next(iter(methods))), checkpoints=places, first_seed=seeds[0])
            for env in envs:
                env.close()
            print(terminal_table(rows, metrics=("reached", "held", "latency_p50")))
            if self.film:
                write_films(folder, make, lambda corruption: self._policy(
                    places[0], sensor_std=corruption.sensor_std)[0], layouts[0], first, corruptions)

        return play

    def _suiting(self, parts: dict[str, int], env: Any) -> dict[str, Corruption]:
        """The corruptions to play; without `only`, those that there can be. ValueError for one that there cannot."""
        chosen = {key: each for key, each in self.corruptions.items() if self.only is None or key in self.only}
        for key, each in [*chosen.items()]:
            fits = set(each.parts or ()) <= parts.keys() and (
                not (each.push or each.moved) or hasattr(env.unwrapped, "disturb"))
            if not fits and self.only:
                raise ValueError(f"only={key}: the observation has the parts {', '.join(parts)}"
                                 f"{'' if hasattr(env.unwrapped, 'disturb') else ', and nothing here can be pushed'}")
            if not fits:
                del chosen[key]
        return chosen

    def _play(self, folder: RunFolder, name: str, methods: dict[str, str], envs: list[Any], seeds: list[int],
              rows: list[Row], corruptions: dict[str, Corruption]) -> dict[str, list[RobotEpisode]]:
        """Adds the rows of all methods (name -> checkpoint); returns the episodes of the first, by corruption."""
        first: dict[str, list[RobotEpisode]] = {}
        with Ticker(len(methods) * len(corruptions), "evaluate") as ticker:
            for method, place in methods.items():
                played = {}
                for condition, corruption in corruptions.items():
                    policy = self._policy(place, sensor_std=corruption.sensor_std)[0]
                    played[condition], _ = play_episodes(policy, envs, seeds, corruption)
                    rows += _share_rows(name, method, condition, played[condition])
                    folder.episodes(_records(name, method, condition, played[condition]))
                    ticker.advance(note=f"{method}, {condition}")
                rows += _paired(name, method, played) + self._latency(name, method, place, envs[0])
                rows += _against(name, f"{next(iter(methods))} - {method}", first, played) if first else []
                first = first or played
        return first

    def _policy(self, place: str, **settings: Any) -> tuple[Any, dict[str, Any]]:
        chosen = {key: getattr(self, key) for key in ("steps", "execute") if getattr(self, key) is not None}
        return load_policy(place, device=self.device, raw=self.raw, trust=self.trust, **chosen, **settings)

    def _reference_rows(self, name: str, envs: list[Any], seeds: list[int], layout: dict[str, Any]) -> list[Row]:
        """The expert, and the nearest demonstration repeated in open loop where there are demonstrations."""
        if not self.references:
            return []
        rows = _share_rows(name, EXPERT, "none", play_expert(envs[0], seeds))
        if self.data:
            policy = NearestDemonstration(load_episodes(self.data), chunk=layout["tokens"]["chunk"])
            rows += _share_rows(name, NEAREST, "none", play_episodes(policy, envs, seeds, Corruption())[0])
        return rows

    def _latency(self, name: str, method: str, place: str, env: Any) -> list[Row]:
        """Milliseconds of one call of `act` for one robot."""
        policy = self._policy(place)[0]
        seconds: list[float] = []
        while len(seconds) < LATENCY:
            seconds += play_episodes(policy, [env], [0], Corruption())[1]
        return [make_row(name, method, f"latency_p{share}", 1000 * float(np.percentile(seconds, share)),
                         n=len(seconds), unit="ms", higher=False) for share in (50, 99)]


def _distinct(names: list[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} {number + 1}" for number, name in enumerate(names)]


def _measures(episodes: list[RobotEpisode]) -> dict[str, np.ndarray]:
    """Name of a measure -> whether each episode [E] met it."""
    stages = np.array([episode.stage for episode in episodes])
    return {"reached": np.array([episode.reached for episode in episodes]),
            "held": np.array([episode.held for episode in episodes]),
            **{f"stage_{stage}": stages >= stage for stage in (1, 2, 3)}}


def _share_rows(task: str, method: str, condition: str, episodes: list[RobotEpisode]) -> list[Row]:
    return [make_row(task, method, name, wilson_interval(int(met.sum()), len(met)), variant={"corruption": condition},
                     higher=True) for name, met in _measures(episodes).items()]


def _records(task: str, method: str, condition: str, episodes: list[RobotEpisode]) -> list[dict[str, Any]]:
    return [{"task": task, "method": method, "corruption": condition, "seed": episode.seed, "stage": episode.stage,
             "reached": episode.reached, "held": episode.held, "first": episode.first, "steps": episode.steps}
            for episode in episodes]


def _paired(task: str, method: str, played: dict[str, list[RobotEpisode]]) -> list[Row]:
    """What each condition changes, against the first of them, on the same episodes."""
    (base, episodes), *others = played.items()
    return [_difference(task, method, f"{condition} - {base}", measure, worse, episodes)
            for condition, worse in others for measure in ("reached", "held")]


def _against(task: str, names: str, first: dict[str, list[RobotEpisode]],
             other: dict[str, list[RobotEpisode]]) -> list[Row]:
    return [_difference(task, names, condition, measure, first[condition], other[condition])
            for condition in first for measure in ("reached", "held")]


def _difference(task: str, method: str, condition: str, measure: str, a: list[RobotEpisode],
                b: list[RobotEpisode]) -> Row:
    return difference_row(task, method, measure, _measures(a)[measure].astype(float), _measures(b)[measure].astype(
        float), variant={"corruption": condition})


def _summary(rows: list[Row], method: str) -> str:
    """The sentence that a page begins with."""
    reached, held = (next(row for row in rows if row["method"] == method and row["metric"] == name)
                     for name in ("reached", "held"))
    return (f"{reached['task']}, {reached['n']} episodes: {method} reached success in {reached['value']:.0%} [95% "
            f"interval {reached['low']:.0%} to {reached['high']:.0%}] and still had it at the end in "
            f"{held['value']:.0%} [{held['low']:.0%} to {held['high']:.0%}]; "
            f"corruption: {reached['variant']['corruption']}.")
