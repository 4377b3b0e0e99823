"""One bit flipped in a random byte of a checkpoint or a data set: is it reported by whoever loads it?

python scripts/faults/flips.py [--flips 200] [--seed 0] [--out docs/results/flips.json]
Half of the flips hit files of a checkpoint (resumed and loaded), half those of a data set. A file is drawn uniformly,
so that the small ones, whose damage changes meaning, are hit as often as the weights.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kills
import numpy as np
import record
import torch

from dforce.data import load_episodes, make_maze_dataset
from dforce.data.store import datasets_root
from dforce.train.checkpoint import load, load_state


def read_checkpoint(folder: Path) -> list[Any]:
    """All that loading and resuming get from a checkpoint, as arrays and plain values."""
    state, bundle = load_state(folder), load(folder)
    statistics = bundle.normalizer.state_dict().values() if bundle.normalizer else ()
    tensors = [*state.model.values(), *state.ema.values(), *state.optim.values(), *statistics]
    return [*tensors, state.step, state.record, bundle.config, bundle.layout]


def read_data(folder: Path) -> list[Any]:
    """All that training gets from a data set."""
    episodes = load_episodes(folder, infos=["goal"])
    arrays = [episodes.observations, episodes.actions, episodes.rewards, episodes.infos["goal"]]
    return [*map(torch.from_numpy, map(np.ascontiguousarray, arrays)), episodes.about]


def flips(folder: Path, read: Callable[[Path], list[Any]], count: int, seed: int) -> tuple[list[bool], list[bool]]:
    """For each of `count` flips: was it reported; was it reported, or what was read still as it should be."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    draw, intact = random.Random(seed), read(folder)
    reported, harmless = [], []
    for _ in range(count):
        file = draw.choice(files)
        good = file.read_bytes()
        bad = bytearray(good)
        place, bit = draw.randrange(len(good)), draw.randrange(8)
        bad[place] ^= 1 << bit
        file.write_bytes(bad)
        try:
            damaged_content = read(folder)
            reported.append(False)
            harmless.append(all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
                                for a, b in zip(intact, damaged_content, strict=True)))
            print(f"not reported: {file.name}, byte {place}, bit {bit}")
        except ValueError:  # a CheckpointError is one; anything else is a fault of the library, and ends this
            reported.append(True)
            harmless.append(True)
        file.write_bytes(good)
    return reported, harmless


def targets(work: Path) -> dict[str, tuple[Path, Callable[[Path], list[Any]]]]:
    """A trained checkpoint and a data set, with what reads them. They lie in the local Minari store and under work."""
    name = make_maze_dataset("umaze", steps=20_000, name="dforce/maze2d-flips-v1")
    kills.finish([f"data={name}", *kills.SETTINGS, "fit.steps=30", f"out={work / 'run'}"])
    return {"checkpoint": (work / "run/checkpoints/step_00000030", read_checkpoint),
            "data set": (datasets_root() / name, read_data)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="docs/results/flips.json")
    args, begin, rows = parser.parse_args(), time.monotonic(), []
    with tempfile.TemporaryDirectory() as work:
        os.environ["MINARI_DATASETS_PATH"] = f"{work}/minari"
        for what, (folder, read) in targets(Path(work)).items():
            outcomes = flips(folder, read, args.flips // 2, args.seed)
            for metric, good in zip(("flip reported", "flip not used silently"), outcomes, strict=True):
                rows.append(record.share("faults", "load", metric, good, files=what))
    record.write(args.out, rows, begin)
