"""SIGKILL at random moments of a training run: is what is resumed what an undisturbed run ends with, bit for bit?

python scripts/faults/kills.py [--kills 20] [--seed 0] [--out docs/results/kills.json]
Every trial runs the verb `dforce train` in a process of its own, kills it at a moment drawn uniformly from the time
that the undisturbed run takes, resumes it by `dforce train resume=...`, and compares weights, averages, moments,
carried states and metrics.jsonl. Half of the kills hit runs that carry states from window to window.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import record
import torch

from dforce.cli.main import main
from dforce.data import make_maze_dataset
from dforce.train.checkpoint import load_state

SETTINGS = ["horizon=40", "stack=5", "batch=16", "held_out=0.2", "net.width=32", "fit.steps=120", "fit.warmup=10",
            "fit.validate_every=15", "save_every=6", "fit.precision=fp32"]


def launch(arguments: list[str]) -> int:
    """`dforce train` in a fork, silent; its process id. (A fork: the libraries are loaded once.)"""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1), os.dup2(nowhere.fileno(), 2)
        torch.set_num_threads(1)
        code = main(["train", *arguments])
    finally:
        os._exit(code)


def finish(arguments: list[str]) -> float:
    """Seconds that the whole run takes. RuntimeError if it fails."""
    begin = time.monotonic()
    if code := os.waitstatus_to_exitcode(os.waitpid(launch(arguments), 0)[1]):
        raise RuntimeError(f"dforce train {' '.join(arguments)} ended with {code}")
    return time.monotonic() - begin


def killed(arguments: list[str], folder: Path, moment: float) -> bool:
    """Kills the run `moment` seconds after its folder holds a configuration; False if it was over before."""
    process = launch(arguments)
    while not (folder / "config.yaml").exists():
        time.sleep(0.001)
    time.sleep(moment)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def same(one: Path, other: Path) -> bool:
    """Do two run folders agree in all that training leaves, bit for bit, but for the time it took?"""
    a, b = load_state(one), load_state(other)
    for part in ("model", "ema", "optim", "carried"):
        left, right = getattr(a, part), getattr(b, part)
        if left.keys() != right.keys() or not all(torch.equal(left[name], right[name]) for name in left):
            return False
    logs = [[{key: value for key, value in json.loads(line).items() if key != "seconds"}
             for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()] for folder in (one, other)]
    done = (one / "STATUS").read_text("utf-8") == (other / "STATUS").read_text("utf-8") == "done\n"
    return (a.step, a.record) == (b.step, b.record) and logs[0] == logs[1] and done


def trials(work: Path, kills: int, seed: int, *more: str) -> list[bool]:
    """Kill and resume `kills` runs; whether each ends as the undisturbed one. Data lie in the local Minari store."""
    data = make_maze_dataset("umaze", steps=20_000, name="dforce/maze2d-kills-v1")
    settings, draw = [f"data={data}", *SETTINGS, *more], random.Random(seed)
    seconds = finish([*settings, f"out={work / 'undisturbed'}"])
    outcomes: list[bool] = []
    for number in range(10 * kills):
        folder = work / f"killed-{number}"
        if len(outcomes) < kills and killed([*settings, f"out={folder}"], folder, draw.uniform(0, seconds)):
            finish([f"resume={folder}"])
            outcomes.append(same(folder, work / "undisturbed"))
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="docs/results/kills.json")
    args, begin, rows = parser.parse_args(), time.monotonic(), []
    with tempfile.TemporaryDirectory() as work:
        os.environ["MINARI_DATASETS_PATH"] = f"{work}/minari"
        for carry, count in (("false", args.kills - args.kills // 2), ("true", args.kills // 2)):
            equal = trials(Path(work) / carry, count, args.seed, f"carry={carry}")
            rows.append(record.share("train umaze", "resume", "bit-exact after SIGKILL", equal, carry=carry == "true"))
    record.write(args.out, rows, begin)
