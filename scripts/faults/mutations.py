"""Changed bytes in everything that dforce writes and reads: reported, harmless, or used in silence?

A file is drawn uniformly among those of a target, so that the small ones, whose damage changes meaning, are hit as
often as the weights; then a bit is flipped, the file is cut, emptied, lengthened, overwritten in part, or takes the
content of another file of the target.
"""

import copy
import functools
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kills
import numpy as np
import tally
import torch

from dforce.align import BradleyTerry, load_reward
from dforce.align.lora import add_lowrank, load_adapters, save_adapters
from dforce.data import VideoClips, load_episodes
from dforce.data.seal import SETTLED, cache_root
from dforce.data.store import datasets_root
from dforce.images.classifier import load_classifier
from dforce.report.rows import make_row, read_results, write_results
from dforce.runs.environment import environment
from dforce.runs.shards import read_shard, write_shard
from dforce.train.checkpoint import load, load_state
from dforce.train.sealed_file import load_file_sealed, save_file_sealed
from dforce.video.recording import Record

Reader = Callable[[], Any]
CHANGED = ("rollouts", "decoded clips and index")  # by their readers, which cut or make anew what is wrong
IDENTITY = {"task": "umaze", "seed": 0, "node": {"scale": 0.5}}
RECORD: dict[str, Any] = {"shape": (2, 4, 4, 1), "actions": 3, "settings": {"seed": 0}}


def checkpoint(folder: Path) -> list[Any]:
    """All that loading and resuming get from a checkpoint."""
    state, bundle = load_state(folder), load(folder)
    statistics = bundle.normalizer.state_dict() if bundle.normalizer else {}
    return [*state, statistics, bundle.denoiser.state_dict(), bundle.config, bundle.layout]


def shard(file: Path) -> Any:
    """A result of a job; one that does not count is made anew, after its reason was told."""
    content = read_shard(file, IDENTITY)
    if isinstance(content, str):
        raise ValueError(content)
    return content


def ratios(folder: Path) -> dict[str, Any]:
    """The weights of a reward that was learnt of pairs."""
    reward = load_reward(folder)
    assert isinstance(reward, BradleyTerry)
    return reward.net.state_dict()


def pixels(folder: Path) -> Any:
    """What training gets from clips, through their decoded cache and their index."""
    clips = VideoClips(folder, frames=8, held_out=0, cache=True)
    return clips.sequence(range(len(clips.clips))).x


def record(folder: Path) -> list[Any]:
    """What a rollout goes on from."""
    there = Record(folder, resume=True, **RECORD)
    return [there.frames_done, there.chunks, there.state, np.array(there.frames()), there.actions_fed()]


def episodes(folder: Path) -> list[Any]:
    """All that training gets from a data set."""
    content = load_episodes(folder, infos=["goal"])
    return [content.observations, content.actions, content.rewards, content.infos["goal"], content.about]


def adapters(folder: Path, model: torch.nn.Module) -> Any:
    """A model with the adapters of a folder."""
    model = copy.deepcopy(model)
    load_adapters(folder, model)
    return model.state_dict()


def targets(work: Path) -> dict[str, tuple[Path, Reader]]:
    """Name -> the files, and what reads them."""
    given, made = kills.data(work), {}
    for verb in ("train", "train image", "train reward"):
        made[verb] = work / verb.replace(" ", "-")
        if code := kills.ended(kills.launch([*kills.VERBS[verb], f"data={given[verb]}", f"out={made[verb]}"])):
            raise RuntimeError(f"dforce {verb} ended with {code}")
    model = load(made["train"]).denoiser
    adapted = copy.deepcopy(model)
    add_lowrank(adapted, rank=2, generator=torch.Generator().manual_seed(0))
    save_adapters(work / "adapters", adapted)
    write_shard(work / "shards" / "a.jsonl", IDENTITY, {"seconds": 1.5}, [{"score": i / 7} for i in range(9)])
    header = {key: value for key, value in environment("faults").items() if key != "time"}
    write_results(work / "results" / "results.json", header | {"seconds": 1.0, "peak_memory_mb": 2.0},
                  [make_row("t", "m", "score", 0.25 * i, n=i) for i in range(3)])
    (work / "net").mkdir()
    save_file_sealed(work / "net" / "net.safetensors", {"weight": torch.arange(12.0).view(3, 4)}, {"walker": {"a": 1}})
    (work / "record").mkdir()
    rollout = Record(work / "record", **RECORD)
    rollout.append(np.arange(2 * 3 * 16, dtype=np.uint8).reshape(2, 3, 4, 4, 1), torch.rand(2, 3, 3))
    rollout.save({"z": torch.rand(2, 5)}, chunks=3, frames=3)
    time.sleep(2 * SETTLED)
    pixels(work / "balls")
    time.sleep(2 * SETTLED)
    pixels(work / "balls")
    newest = sorted((made["train"] / "checkpoints").glob("step_*"))[-1]
    return {
        "checkpoints": (newest, functools.partial(checkpoint, newest)),
        "learnt rewards": (made["train reward"] / "reward",
                           lambda: ratios(made["train reward"])),
        "classifiers": (made["train image"] / "classifier",
                        lambda: load_classifier(made["train image"]).state_dict()),
        "adapters": (work / "adapters", lambda: adapters(work / "adapters", model)),
        "shards of results": (work / "shards", lambda: shard(work / "shards" / "a.jsonl")),
        "results.json": (work / "results", lambda: tuple(read_results(work / "results" / "results.json"))),
        "small networks": (work / "net", lambda: load_file_sealed(work / "net" / "net.safetensors", "walker")),
        "rollouts": (work / "record", lambda: record(work / "record")),
        "maze data": (datasets_root() / given["train"], lambda: episodes(datasets_root() / given["train"])),
        "clips": (work / "balls", lambda: pixels(work / "balls")),
        "decoded clips and index": (cache_root(), lambda: pixels(work / "balls")),
    }


def mutated(content: bytes, other: bytes, draw: random.Random) -> tuple[str, bytes]:
    """One way to change a file, and what it then holds."""
    place = draw.randrange(max(len(content), 1))
    way = draw.choice(["flip"] * 6 + ["cut", "empty", "longer", "zeros", "swap"])
    if way == "flip" and content:
        bad = bytearray(content)
        bad[place] ^= 1 << draw.randrange(8)
        return f"flip of byte {place}", bytes(bad)
    return f"{way} at {place}", {"cut": content[:place], "empty": b"", "longer": content + b"0", "swap": other}.get(
        way, content[:place] + bytes(min(64, len(content) - place)) + content[place + 64:])


def faults(work: Path, count: int, seed: int) -> Iterator[tally.Fault]:
    """`count` mutations, dealt to the targets in turn."""
    draw, those = random.Random(seed), targets(work)
    intact = {name: read() for name, (_, read) in those.items()}
    for number in range(count):
        name = [*those][number % len(those)]
        folder, read = those[name]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        file, other = draw.choice(files), draw.choice(files)
        good, status = file.read_bytes(), file.stat()
        way, bad = mutated(good, other.read_bytes(), draw)
        everything = {path: path.read_bytes() for path in files} if name in CHANGED else {}
        file.write_bytes(bad)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        yield tally.judged(f"mutated {name}", f"{file.name}, {way}", read, intact[name])
        file.write_bytes(good)
        for path, content in everything.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
