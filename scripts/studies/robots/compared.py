"""Policies that learn from the same demonstrations and play the same episodes: jobs that can be stopped and go on."""

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import yaml

import dforce.envs.robot  # noqa: F401  (registers the tasks)
from dforce.benchmarks.robot.episodes import Remembered, RobotEpisode, play_episodes, play_expert
from dforce.cli.main import main
from dforce.data import load_episodes
from dforce.policy.corruption import Corruption
from dforce.policy.demonstration import NearestDemonstration
from dforce.policy.evaluation import BLOCK
from dforce.report.rows import Row, difference_row, make_row, read_episodes, write_episodes
from dforce.report.statistics import success_interval, wilson_interval
from dforce.runs.imitation import load_policy
from dforce.runs.jobs import Job, claims_in, run_is_done, run_jobs, slug

CONFIG = Path(__file__).parents[3] / "configs" / "verbs" / "evaluate" / "robot.yaml"
COPIES, CLEAN = 50, "none"
SECONDS = "cpu_seconds"  # file of a training: CPU seconds of each of its parts
MEASURES = ("reached", "held", "stage_1", "stage_2", "stage_3")


@functools.cache
def corruptions() -> dict[str, Corruption]:
    """Those of `dforce evaluate robot` that do not ask for a camera, by name."""
    nodes = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["corruptions"]
    return {name: Corruption(**{key: value for key, value in node.items() if key != "_target_"})
            for name, node in nodes.items() if "parts" not in node}


@dataclass(frozen=True)
class Comparison:
    """Methods on one task.

    task: name in results. data: of the demonstrations in the Minari store. work: folder of trainings and episodes.
    methods: name -> words of `dforce imitate`; the first is the one that the others are compared with.
    networks: training seeds 0, 1, ... of each. played: method -> corruption -> episodes. first_seed: of the episodes.
    """

    task: str
    data: str
    work: Path
    methods: Mapping[str, tuple[str, ...]]
    networks: int
    played: Mapping[str, Mapping[str, int]]
    first_seed: int = 3 * BLOCK  # as seed=2 of `dforce evaluate robot`; settings were chosen on those of seed=0
    variant: Mapping[str, Any] = field(default_factory=dict)  # of all rows
    needs: tuple[str, ...] = ()  # jobs that come first

    def jobs(self) -> Iterator[Job]:
        """First network 0 of all methods, then network 1, ...; of each network its training, then its episodes."""
        for number in range(self.networks):
            for method, words in self.methods.items():
                folder = self._folder(method, number)
                yield Job(str(folder), self.needs, partial(run_is_done, folder),
                          partial(_train, folder, (f"data={self.data}", f"seed={number}", *words)))
                for condition, count in self.played[method].items():
                    file = self._episodes(method, number, condition)
                    yield Job(str(file), (str(folder),), file.is_file, partial(self._play, file, folder, condition,
                                                                               count))

    def reference_job(self, episodes: int) -> Job:
        """The task's expert, and the nearest demonstration in open loop."""
        file = self._episodes("references", 0, CLEAN)
        return Job(str(file), (), file.is_file, partial(self._play_references, file, episodes))

    def rows(self) -> list[Row]:
        """Of all that has been played so far."""
        results = {(method, condition): each for method in self.methods for condition in self.played[method]
                   if len((each := self._results(method, condition)).get("network", []))}
        rows = [row for key, each in results.items() for row in self._share_rows(*key, each)]
        base = next(iter(self.methods))
        for (method, condition), each in results.items():
            if condition != CLEAN and (method, CLEAN) in results:
                rows += self._differences(method, f"{condition} - {CLEAN}", each, results[method, CLEAN])
            if method != base and (base, condition) in results:
                rows += self._differences(f"{base} - {method}", condition, results[base, condition], each)
        return [*self._reference_rows(), *rows, *self._time_rows()]

    def _time_rows(self) -> Iterator[Row]:
        """CPU seconds of a training, the mean over networks."""
        for method in self.methods:
            files = [self._folder(method, number) / SECONDS for number in range(self.networks)]
            seconds = [sum(map(float, file.read_text(encoding="utf-8").split())) for file in files if file.is_file()]
            if seconds:
                yield make_row(self.task, method, "training_time", float(np.mean(seconds)), n=len(seconds),
                               seeds=len(seconds), unit="CPU s", variant=self.variant)

    def _share_rows(self, method: str, condition: str, results: Mapping[str, np.ndarray]) -> Iterator[Row]:
        for measure in MEASURES:
            interval = success_interval(results[measure], results["network"], rng=np.random.default_rng(0))
            yield make_row(self.task, method, measure, interval, variant={**self.variant, "corruption": condition},
                           seeds=len(np.unique(results["network"])), higher=True)

    def _differences(self, method: str, condition: str, a: Mapping[str, np.ndarray],
                     b: Mapping[str, np.ndarray]) -> Iterator[Row]:
        """a - b where both played the same episode with the same network number."""
        keys = [list(zip(each["network"].tolist(), each["seed"].tolist(), strict=True)) for each in (a, b)]
        common = sorted(set(keys[0]) & set(keys[1]))
        rows_a, rows_b = (np.array([key.index(pair) for pair in common], dtype=int) for key in keys)
        for measure in ("reached", "held") if common else ():
            yield difference_row(self.task, method, measure, a[measure][rows_a] * 1.0, b[measure][rows_b] * 1.0,
                                 a["network"][rows_a], variant={**self.variant, "corruption": condition})

    def _results(self, method: str, condition: str) -> dict[str, np.ndarray]:
        """Name of a measure, "network" or "seed" -> [E], of all networks that have played."""
        lines = [{"network": number, **line} for number in range(self.networks)
                 if (file := self._episodes(method, number, condition)).is_file() for line in read_episodes(file)]
        results = {key: np.array([line[key] for line in lines]) for key in (lines[0] if lines else ())}
        return results | {f"stage_{stage}": results["stage"] >= stage for stage in (1, 2, 3) if lines}

    def _reference_rows(self) -> list[Row]:
        file = self._episodes("references", 0, CLEAN)
        lines = list(read_episodes(file)) if file.is_file() else []
        return [make_row(self.task, name, measure, wilson_interval(int(sum(met)), len(met)), higher=True,
                         variant={**self.variant, "corruption": CLEAN})
                for name in dict.fromkeys(line["method"] for line in lines) for measure in ("reached", "held")
                if (met := [line[measure] for line in lines if line["method"] == name])]

    def _play(self, file: Path, folder: Path, condition: str, count: int) -> None:
        corruption = corruptions()[condition]
        policy, layout = load_policy(folder, sensor_std=corruption.sensor_std)
        envs = environments(layout["env"], **layout["env_settings"])
        write_episodes(file, records(play_episodes(policy, envs[:count], self._seeds(count), corruption)[0]))

    def _play_references(self, file: Path, count: int) -> None:
        folder = self._folder(next(iter(self.methods)), 0)
        layout = load_policy(folder)[1]
        envs = environments(layout["env"], **layout["env_settings"])
        nearest = NearestDemonstration(load_episodes(self.data), chunk=layout["tokens"]["chunk"])
        played = {"expert": play_expert(envs[0], self._seeds(count)), "nearest demonstration": play_episodes(
            nearest, envs[:count], self._seeds(count), Corruption())[0]}
        write_episodes(file, [{"method": name, **line} for name, each in played.items() for line in records(each)])

    def _seeds(self, count: int) -> list[int]:
        return [self.first_seed + number for number in range(count)]

    def _folder(self, method: str, number: int) -> Path:
        return self.work / f"{slug(method)}-{number}"

    def _episodes(self, method: str, number: int, condition: str) -> Path:
        return self.work / "episodes" / f"{slug(method)}-{number}-{slug(condition)}.jsonl"


@lru_cache(maxsize=1)
def environments(name: str, **settings: Any) -> list[Any]:
    """Those that episodes are played in side by side."""
    beginnings: dict[int, Any] = {}
    return [Remembered(gymnasium.make(name, disable_env_checker=True, **settings), beginnings) for _ in range(COPIES)]


def records(episodes: list[RobotEpisode]) -> list[dict[str, Any]]:
    """A flat object an episode."""
    return [{"seed": each.seed, "stage": each.stage, "reached": each.reached, "held": each.held, "first": each.first,
             "steps": each.steps} for each in episodes]


def work_off(jobs: Sequence[Job], work: Path) -> None:
    """Does the jobs, shared with other processes that work in the same folder; prints those that fail."""
    outcome = run_jobs(jobs, claims_in(work / "locks"),
                       tell=lambda name, left: print(f"{Path(name).name} ({left} of {len(jobs)} left)", flush=True))
    for name, error in outcome.failed.items():
        print(f"{name} failed: {error}")


def command(*words: str) -> None:
    """`dforce` with these words, or RuntimeError."""
    if main(words):
        raise RuntimeError(f"dforce {' '.join(words)} failed")


def _train(folder: Path, words: tuple[str, ...]) -> None:
    again = (f"resume={folder}",) if any((folder / "checkpoints").glob("step_*")) else ()
    begin = time.process_time()
    try:
        command("imitate", *words, f"out={folder}", *again)
    finally:
        if folder.is_dir():
            with (folder / SECONDS).open("a", encoding="utf-8") as file:
                file.write(f"{time.process_time() - begin:.1f}\n")
