"""What `fast_dev_run=true` leaves of a command: everything once, small; what the command line gives stays."""

from collections.abc import Collection, Mapping
from typing import Any

from dforce.runs.checkpoint_defaults import with_settings

FIT = {"fit.steps": 20, "fit.warmup": 5, "fit.validate_every": 10}
ALGORITHM = {"algorithm.epochs": 2, "algorithm.samples": 32, "algorithm.updates": 2}
DRIFT = {"feature_steps": 5, "window": 4}
SHORT: dict[str, dict[str, Any]] = {  # command -> dotted key -> value, where that is less than what would be
    "align/image": {**ALGORITHM, "watch": 20, "evaluate": 20, "best_of": 2},
    "align/pipeline": {**ALGORITHM, "algorithm.samples": 8, "steps": 4, "watch": 4, "evaluate": 4},
    "align/planner": {"algorithm.epochs": 2, "algorithm.samples": 16, "episodes": 6, "watch.plans": 6, "pictures": 1},
    "align/policy": {"algorithm.epochs": 2, "algorithm.samples": 4, "algorithm.updates": 2, "watch": 4, "evaluate": 4},
    "align/video": {**ALGORITHM, **DRIFT, "watch": 8, "evaluate": 6, "rollouts": 2, "rollout_frames": 12},
    "benchmark/align": {"epochs": 1, "samples": 32, "points": 1, "judged": 80, "searched": 40, "seeds": 1, "steps": 3,
                        "weak_steps": 3, "judge_steps": 3, "spread": [1]},
    "benchmark/speed": {"quick": True},
    "data/lerobot": {"episodes": 2},
    "data/maze": {"steps": 20_000},
    "data/preferences": {"rows": 8},
    "data/robot": {"episodes": 2, "tail": 10},
    "data/video": {"mazes": 2, "test_mazes": 1, "clips": 2, "test_clips": 2, "frames": 24},
    "demo": {"data_steps": 40_000, "episodes": 8, "plan.pictures": 1, "plan.planner.rounds": 1, "train.batch": 16,
             **{f"train.{key}": FIT[key] for key in FIT}},
    "evaluate/robot": {"episodes": 4},
    "imitate": {**FIT, "batch": 4},
    "plan": {"episodes": 8, "pictures": 1, "planner.rounds": 1},
    "report/episode": {"film": False},
    "rollout": {**DRIFT, "frames": 12, "samples": 2},
    "sample/image": {"per_class": 2, "steps": 4},
    "sample/pipeline": {"count": 2, "steps": 4},
    "train": {**FIT, "batch": 16},
    "train/image": {**FIT, "batch": 32, "classifier": 20, "samples": 20},
    "train/reward": {"steps": 10},
    "train/video": {**FIT, "batch": 8},
}


def shortened(name: str, cfg: Mapping[str, Any], given: Collection[str] = ()) -> tuple[dict[str, Any], frozenset[str]]:
    """The configuration of a command with little to do, where it says fast_dev_run, and the keys that were changed.

    given: dotted keys that stay as they are.
    """
    short = {}
    for key, value in SHORT.get(name, {}).items() if cfg.get("fast_dev_run") else ():
        node: Any = cfg
        for part in key.split("."):
            node = node.get(part, "") if isinstance(node, Mapping) else ""
        small = isinstance(node, (int, float)) and not isinstance(value, (bool, list)) and node <= value
        idle = key == "algorithm.samples" and cfg["algorithm"].get("preferences")  # nothing is sampled
        if node != "" and key not in given and not small and not idle:
            short[key] = value
    return with_settings(cfg, short), frozenset(short)
