"""What of Diffusion Forcing does it? The same network and budget, one thing changed at a time, on umaze.

python scripts/studies/planning/ablation.py [--steps 2000] [--seeds 3] [--out runs/ablation] [--models FOLDER] [override
...]

Trained with rows of planners' schedules in half of the sequences, with levels all independent, one a sequence, or
rising along time; with the x0 error weighed by min-SNR, fused SNR (of two decays) or not at all; each planned with at
first and at second order, delay and guidance scale tuned on starts of their own, and by Monte Carlo Tree Guidance with
four futures, whose worth depends on the training. The work is that of `dforce benchmark planning`: trainings are run
folders, it goes on where it stopped, several processes may share --out, and overrides (limit=3000 threads=1
episodes=50) are passed on.
--models: the models folder of a benchmark, whose networks of the same settings are then not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from dforce.cli.compose import changed_suite, shipped_suite
from dforce.report.rows import read_results, write_results
from dforce.runs.folder import environment

TASK, STACK = "maze2d-umaze", 10
DECAY = 0.9                # a token, of fused SNR as `dforce train` has it
PAPER_DECAY = 0.96**STACK  # .96 a step, as in the paper's code; here a token is a stack of them
WEIGHT = "objective.weight"
OTHER = {f"~{WEIGHT}.clip": None, f"~{WEIGHT}.decay": None}  # a weight without them
CHANGES: dict[str, dict[str, Any]] = {  # name -> what its training differs in from the first one's
    "forcing": {},                      # planners' rows, min-SNR: the names are those of the benchmark's networks
    "independent levels": {"objective.levels._target_": "dforce.core.loss.independent"},
    "full sequence": {"objective.levels._target_": "dforce.core.loss.shared"},
    "rising levels": {"objective.levels._target_": "dforce.core.loss.rising"},
    "fused SNR": {f"{WEIGHT}.decay": DECAY},
    "fused SNR of the paper": {f"{WEIGHT}.decay": PAPER_DECAY},
    "no weight": OTHER | {f"{WEIGHT}._target_": "dforce.core.loss.uniform"},
}
DELAYS, SCALES = [0, 1], [0.1, 0.3]  # tuned together: levels that are one a sequence want delay 0
ORDERS = (2, 1)


def suite(asked: argparse.Namespace) -> dict[str, Any]:
    """The benchmark of the ablation, over the sizes of the shipped one for this task."""
    base = changed_suite(shipped_suite(TASK, "cpu"), {})
    planner = {"_target_": "dforce.planning.planner.DiffusionPlanner", "steps": 20, "delay": 0, "scale": 0.3}
    network = base["models"]["forcing"] | {"fit.steps": asked.steps}
    names = {(model, order): f"{model} order {order}" for model in CHANGES for order in ORDERS}
    trees = {model: f"{model} MCTG n=4" for model in CHANGES}
    first = names["forcing", ORDERS[0]]
    return {
        **{key: base[key] for key in ("episodes", "tune", "train", "fast")},
        "seeds": asked.seeds,
        "models": {model: network | changes for model, changes in CHANGES.items()},
        "executors": {"tracking": base["executors"]["tracking"]},
        "methods": {name: {"model": model, "planner": planner | {"order": order},
                           "tune": {"delay": DELAYS, "scale": SCALES}} for (model, order), name in names.items()}
        | {name: {"model": model, "planner": planner | {"delay": 1, "draws": 4, "lookahead": 2},
                  "tune": base["methods"]["MCTG n=4"]["tune"]} for model, name in trees.items()},
        "pairs": [[name, first] for name in names.values() if name != first]
        + [[names[model, 2], names[model, 1]] for model in CHANGES]
        + [[name, names[model, 2]] for model, name in trees.items()]
        + [[name, trees["forcing"]] for name in trees.values() if name != trees["forcing"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of dforce benchmark planning")
    parser.add_argument("--steps", type=int, default=2000, help="of each training")
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
