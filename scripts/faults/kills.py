"""SIGKILL at random moments of every verb that trains: begun again, does it end as the undisturbed run, bit for bit?

A run is killed at a moment drawn uniformly from the time that it takes undisturbed, its start, its first checkpoint and
its end included; one in three is killed a second time while it goes on. Then it is resumed, or, where its verb has no
`resume=` or nothing of it was written yet, begun by the same command. Weights, averages, moments, carried states and
metrics.jsonl must be those of the undisturbed run, and nothing half written may be left.
"""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tally
import torch

from dforce.align import BradleyTerry, Pairs, load_reward, write_pairs
from dforce.cli.main import main
from dforce.data import make_maze_dataset
from dforce.data.generate.video import bouncing_balls
from dforce.train.checkpoint import load_state

FIT = ["fit.warmup=2", "fit.precision=fp32", "save_every=4", "fit.validate_every=10"]
TRAIN = ["train", "horizon=20", "stack=5", "batch=8", "held_out=0.2", "net.width=8", "fit.steps=60", *FIT]
VERBS: dict[str, list[str]] = {
    "train": TRAIN,
    "train, states carried": [*TRAIN, "carry=true"],
    "train image": ["train", "image", "batch=8", "net.width=8", "net.depth=1", "net.hidden=8", "fit.steps=60",
                    "classifier=5", "samples=0", *FIT],
    "train video": ["train", "video", "batch=4", "frames=4", "net.width=8", "net.latent=8", "net.multipliers=[1]",
                    "samples=0", "fit.steps=20", "held_out=0", *FIT],
    "train reward": ["train", "reward", "steps=60", "batch=20", "width=8", "depth=1"],
    "align image": ["align", "image", "reward=bright", "algorithm.epochs=6", "algorithm.samples=8",
                    "algorithm.updates=2", "steps=3", "watch=0", "evaluate=0", "save_every=1", "classifier=null"],
    "imitate": ["imitate", "batch=4", "chunk=5", "held_out=0.2", "net.width=8", "imitation.hold=0",
                "+imitation.window=8", "fit.steps=20", *FIT],
    "align video": ["align", "video", "checkpoint=balls", "reward=bright", "frames=4", "steps=2", "watch=0",
                    "evaluate=0", "algorithm.epochs=4", "algorithm.samples=4", "algorithm.group=2",
                    "algorithm.updates=2", "save_every=1"],
    "align policy": ["align", "policy", "checkpoint=swap", "algorithm.epochs=3", "algorithm.samples=2",
                     "algorithm.updates=1", "steps=2", "watch=0", "evaluate=0", "save_every=1"],
}


def launch(words: list[str]) -> int:
    """`dforce` in a fork, silent; its process id. (A fork: the libraries are loaded once.)"""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        with open(os.environ.get("FAULTS_LOG", os.devnull), "a") as nowhere:
            os.dup2(nowhere.fileno(), 1), os.dup2(nowhere.fileno(), 2)
        torch.set_num_threads(1)
        code = main(words)
    finally:
        os._exit(code)


def ended(process: int) -> int:
    """The exit code of a process, minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed(words: list[str], moment: float) -> bool:
    """Kills a run `moment` seconds after its start; False if it was over before."""
    process = launch(words)
    time.sleep(moment)
    os.kill(process, signal.SIGKILL)
    return ended(process) == -signal.SIGKILL


def left(folder: Path) -> list[Any]:
    """All that training leaves, but for the time it took."""
    if (folder / "reward").is_dir():
        reward = load_reward(folder)
        assert isinstance(reward, BradleyTerry)
        return [reward.net.state_dict()]
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    log = [{key: value for key, value in json.loads(line).items() if "seconds" not in key} for line in lines]
    state = load_state(folder)
    return [*state._replace(optim=dict(sorted(state.optim.items()))), log, (folder / "STATUS").read_text("utf-8")]


def again(words: list[str], folder: Path) -> list[str]:
    """The command that goes on with what is in the folder."""
    if words[1] == "reward" or not (folder / "config.yaml").is_file():
        return words
    return [*words[: 1 + ("=" not in words[1])], f"resume={folder}"]


def data(work: Path) -> dict[str, str]:
    """Small data for every verb, made once; the maze's lie in the local Minari store."""
    name = "dforce/maze2d-faults-v1"
    make_maze_dataset("umaze", steps=10_000, name=name, overwrite=True)
    list(bouncing_balls(work / "balls", clips=8, test_clips=1, frames=8, size=16))
    x = torch.rand(80, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    write_pairs(work / "pairs.npz", Pairs(x[::2] + 1, x[1::2], {}, torch.ones(40)))
    return {"train": name, "train, states carried": name, "imitate": name, "train image": "digits",
            "train video": str(work / "balls"), "train reward": str(work / "pairs.npz")}


def faults(work: Path, count: int, seed: int) -> Iterator[tally.Fault]:
    """`count` kills, dealt to the verbs in turn."""
    given, draw = data(work), random.Random(seed)
    whole: dict[str, tuple[float, list[Any]]] = {}
    for number in range(count):
        verb = [*VERBS][number % len(VERBS)]
        words = [*VERBS[verb], *([f"data={given[verb]}"] if verb in given else [])]
        if verb not in whole:
            begin, folder = time.monotonic(), work / f"whole-{len(whole)}"
            if code := ended(launch([*words, f"out={folder}"])):
                raise RuntimeError(f"dforce {' '.join(words)} ended with {code}")
            whole[verb] = time.monotonic() - begin, left(folder)
        yield trial(verb, words, work / f"killed-{time.time_ns()}", *whole[verb], draw)


def trial(verb: str, words: list[str], folder: Path, seconds: float, wanted: list[Any],
          draw: random.Random) -> tally.Fault:
    """One run that is killed, gone on with, and compared."""
    words = [*words, f"out={folder}"]
    moment = draw.uniform(0, seconds)
    what = f"{verb}, killed after {moment:.2f} of {seconds:.2f} s"
    killed(words, moment)
    if draw.random() < 1 / 3:
        second = draw.uniform(0, seconds - moment)
        killed(again(words, folder), second)
        what += f", and {second:.2f} s into going on"
    code = ended(launch(again(words, folder)))
    if code and not (words[1] == "reward" and (folder / "reward").is_dir()):  # its only result is there: it is compared
        return tally.Fault("kills", f"{what}: going on ended with {code}", tally.LOST)
    halves = [str(file) for file in folder.rglob("*") if ".tmp" in file.name or file.suffix == ".part"]
    same = tally.equal(left(folder), wanted) and not halves
    return tally.Fault("kills", f"{what} {halves or ''}", tally.HARMLESS if same else tally.SILENT)
