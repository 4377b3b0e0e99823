"""What of Diffusion Forcing does it? The same network and budget, one thing changed at a time, on umaze.

python scripts/planning/ablation.py [--steps 4000] [--seeds 3] [--out runs/ablation] [--models FOLDER] [override ...]

Trained with rows of planners' schedules in half of the sequences, with levels all independent, one a sequence, or
rising along time; with the x0 error weighed by fused SNR (of two decays), min-SNR or not at all; each planned with at
first and at second order. Delay and guidance scale are tuned on starts of their own, the same trials for each. The work
is that of `dforce benchmark planning`: trainings are run folders, it goes on where it stopped, several processes may
share --out, and overrides (limit=3000 threads=1 episodes=50) are passed on.
--models: the models folder of a benchmark, whose networks of the same settings are then not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from dforce.report.results import read_results, write_results
from dforce.run import environment

TASK, STACK = "maze2d-umaze", 10
PAPER_DECAY = 0.96**STACK  # .96 a step, as in the paper's code; here a token is a stack of them
WEIGHT = "objective.weight"
OTHER = {f"~{WEIGHT}.clip": None, f"~{WEIGHT}.decay": None}  # a weight without them
CHANGES: dict[str, dict[str, Any]] = {  # name -> what its training differs in from the first one's
    "forcing": {},                      # planners' rows, fused SNR: the names are those of the benchmark's networks
    "independent levels": {"objective.levels._target_": "dforce.loss.independent"},
    "full sequence": {"objective.levels._target_": "dforce.loss.shared"},
    "rising levels": {"objective.levels._target_": "dforce.loss.rising"},
    "decay of the paper": {f"{WEIGHT}.decay": PAPER_DECAY},
    "min SNR": OTHER | {f"{WEIGHT}._target_": "dforce.loss.min_snr"},
    "no weight": OTHER | {f"{WEIGHT}._target_": "dforce.loss.uniform"},
}
DELAYS = [0, 5]  # tuned together with the scales that the benchmark tries
ORDERS = (2, 1)


def suite(asked: argparse.Namespace) -> dict[str, Any]:
    """The benchmark of the ablation, over the sizes of the shipped one for this task."""
    text = (files("dforce.configs") / "planning" / f"{TASK}-cpu.yaml").read_text(encoding="utf-8")
    base = yaml.safe_load(text)
    planner = {"_target_": "dforce.planning.plan.DiffusionPlanner", "steps": 20, "delay": 0, "scale": 0.3}
    network = base["models"]["forcing"] | {"fit.steps": asked.steps}
    tune = {"delay": DELAYS, "scale": base["methods"]["guided"]["tune"]["scale"]}
    names = {(model, order): f"{model} order {order}" for model in CHANGES for order in ORDERS}
    first = names["forcing", ORDERS[0]]
    return {
        **{key: base[key] for key in ("episodes", "tune", "train", "fast")},
        "seeds": asked.seeds,
        "models": {model: network | changes for model, changes in CHANGES.items()},
        "executors": {"tracking": base["executors"]["tracking"]},
        "methods": {name: {"model": model, "planner": planner | {"order": order}, "tune": tune}
                    for (model, order), name in names.items()},
        "pairs": [[name, first] for name in names.values() if name != first]
        + [[names[model, 2], names[model, 1]] for model in CHANGES],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of dforce benchmark planning")
    parser.add_argument("--steps", type=int, default=4000, help="of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--models", type=Path)
    parser.add_argument("--results", type=Path, default=Path("docs/results/ablation.json"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.models and not (asked.out / "models").exists():
        (asked.out / "models").symlink_to(asked.models.resolve(), target_is_directory=True)
    file = asked.out / "suite.yaml"
    file.write_text(json.dumps(suite(asked), indent=1), encoding="utf-8")  # JSON is YAML
    subprocess.run([sys.executable, "-m", "dforce", "benchmark", "planning", f"task={TASK}", f"suite={file}",
                    f"out={asked.out}", *asked.overrides], check=True)
    if (asked.out / "STATUS").read_text(encoding="utf-8").strip() == "done":
        header, rows = read_results(asked.out / "results.json")
        write_results(asked.results, header | {"command": [environment()["command"], header["command"]]}, rows)


if __name__ == "__main__":
    main()
