"""The speed benchmark: its parts, and one run of them."""

from collections.abc import Callable
from dataclasses import dataclass

from dforce.benchmarks.speed.data import data_races
from dforce.benchmarks.speed.harness import Timings, all_timings
from dforce.benchmarks.speed.planning import guidance_races, planning_races
from dforce.benchmarks.speed.sampling import sampling_races
from dforce.benchmarks.speed.sizes import QUICK, Sizes
from dforce.benchmarks.speed.train_step import train_step_races
from dforce.config import require_name
from dforce.report.rows import Row
from dforce.runs.folder import RunFolder
from dforce.runs.progress import progress
from dforce.train.precision import choose, device_of

# name -> (sizes) -> races that wait to be run
PARTS: dict[str, Callable[[Sizes], list[Callable[[], Timings]]]] = {
    "train_step": train_step_races, "sampling": sampling_races, "guidance": guidance_races, "planning": planning_races,
    "data": data_races}


@dataclass(frozen=True)
class SpeedBenchmark:
    """One run of `dforce benchmark speed`; configs/verbs/benchmark/speed.yaml explains the settings."""

    parts: tuple[str, ...]
    quick: bool = False
    rounds: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        for part in self.parts:
            require_name(part, PARTS, "the benchmark has no part")

    def sizes(self) -> Sizes:
        """How large everything is; bfloat16 is left out, and that is printed, where the machine is no faster in it."""
        sizes = (QUICK if self.quick else Sizes())._replace(device=device_of(self.device))
        fast = choose("auto", sizes.device)
        if fast.name == "fp32" and not self.quick:
            print(f"bf16 is left out: {fast.reason}")
            sizes = sizes._replace(bf16=False)
        return sizes if self.rounds is None else sizes._replace(rounds=self.rounds)

    def measure(self, folder: RunFolder) -> list[Row]:
        """Runs the parts; results.json and episodes.jsonl, one line a timed run, are written after each race."""
        sizes = self.sizes()
        timings: list[Timings] = []
        for race in progress([race for part in self.parts for race in PARTS[part](sizes)], "benchmark"):
            timings.append(race())
            folder.episodes(timings[-1].runs)
            folder.results(all_timings(timings).rows)  # after each: a long run that is stopped keeps what it has
        return all_timings(timings).rows
