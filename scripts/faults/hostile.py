"""Nodes, files and frames that were made to do harm, data and numbers that are wrong: all must be reported."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import frames
import h5py
import numpy as np
import tally
import yaml
from safetensors.torch import load_file, save_file

from dforce.cli import manual
from dforce.cli.compose import composed
from dforce.config import build, check, check_like
from dforce.config.domains import DOMAINS, FINITE
from dforce.core.files import sha256
from dforce.data import VideoClips, Windows, load_episodes
from dforce.data.arrays import read_npz
from dforce.train.atomic_folder import _digest, _dump
from dforce.train.checkpoint import load, load_state

TARGETS = ["os.system", "posix.system", "builtins.eval", "builtins.open", "subprocess.Popen", "importlib.import_module",
           "dforce.load", "dforce.video.model.load_video", "dforce.train.checkpoint.load", "dforce.config.build",
           "dforce.planning.shards.write_shard", "dforce.runs.shards.write_shard", "dforce.runs.folder.write_atomic",
           "dforce.data.store.datasets_root", "dforce.nets.diffusers.load_unet", "dforce.cli.main.main",
           "dforce.nets.recurrent.torch.load", "dforce.core.schedule.torch.save", "dforce.align.lora.save_adapters",
           "dforce.core.loss.min_snr.__globals__", "dforce.train.fit.fit.__call__", "dforce..loss", "dforce", "",
           None, 3]
NUMBERS = [float("nan"), float("inf"), -float("inf"), -1, 0, 1e30, 99999999999999999999999]
CONTENTS: list[Any] = [None, [], {}, [1], 3, "text", float("nan"), -1, True, 10**30, {"a": {}}, [[[[]]]], "../../x"]
Built = Callable[[Path], Any]


def nodes() -> Iterator[tally.Fault]:
    """Targets that touch a file, a process or the network, alone, inside another node, and with trust in the node."""
    for target in TARGETS:
        bad = {"_target_": target, "trust": ["posix", "os"], "checkpoint": "x", "file": "~/.bashrc", "path": "x"}
        inner = {"_target_": "dforce.nets.recurrent.RecurrentNet", "width": bad, "event_shape": [3]}
        for node in (bad, inner, {"_target_": "dforce.core.loss.min_snr", "gamma": bad}, {**bad, "_partial_": True}):
            yield tally.judged("hostile nodes", f"{node}", lambda node=node: build(node), always=True)


def checked(config: Any, text: str) -> None:
    """As a command checks it."""
    check(config)
    check_like(config, text)


def numbers(every: int) -> Iterator[tally.Fault]:
    """Every numeric key of every verb's configuration (of `every` keys, one); what its domain has is harmless."""
    for verb, kinds in manual.kinds().items():
        for name in (verb if kind == verb else f"{verb}/{kind}" for kind in kinds if kind != "doctor"):
            config, text = composed(name, {}), manual.text_of(name)
            for node, key in [*places(config)][::every]:
                usual = node[key]
                for value in NUMBERS:
                    node[key] = value
                    fault = tally.judged("bad numbers", f"{name} {key}={value}",
                                         lambda config=config, text=text: checked(config, text),
                                         always=value not in DOMAINS.get(key, FINITE))
                    yield fault
                node[key] = usual


def places(config: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """The mapping and the key of every number of a configuration."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, (int, float)) and not isinstance(value, bool) or value is None and key in DOMAINS:
            yield config, key
        yield from places(value)


def reseal(folder: Path) -> None:
    """The manifest says what the files are now, as one who can write to a checkpoint would have it."""
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest.pop("digest")
    manifest["files"] = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
                         for name in manifest["files"] if (folder / name).is_file()}
    (folder / "MANIFEST.json").write_bytes(_dump(manifest, _digest(manifest)))


def resealed(work: Path, checkpoint: Path) -> Iterator[tally.Fault]:
    """Checkpoints with one entry of another kind, one file of nothing, or one tensor of other numbers, sealed anew."""
    folder = work / "resealed"

    def fault(what: str) -> tally.Fault:
        reseal(folder)
        return tally.judged("resealed checkpoints", what, lambda: (load_state(folder), load(folder)), always=True)

    def fresh() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(checkpoint, folder)

    needed = {"state.json": ("step", "record", "extra"), "config.yaml": ("net", "schedule", "predict"),
              "layout.json": ("event_shape", "stack", "observation", "action", "static")}
    for file, keys in needed.items():
        content = yaml.safe_load((checkpoint / file).read_text())
        for key in keys:
            for value in CONTENTS:
                if not (value == {} and key in ("record", "extra", "static") or value is None and key == "static"
                        or value == {"a": {}} and key == "extra" or value == {"a": {}} and key == "record"):
                    fresh()
                    (folder / file).write_text(json.dumps({**content, key: value}))
                    yield fault(f"{file}, {key} = {value!r}")
    for file in ("state.json", "config.yaml", "layout.json", "model.safetensors"):
        for raw in (b"", b"null", b"[]", b"3", b"\xff", b"[" * 100_000, b"a: &a [*a]"):
            fresh()
            (folder / file).write_bytes(raw)
            yield fault(f"{file} of {raw[:9]!r}")
    for file in ("model.safetensors", "optim.safetensors"):
        tensors = load_file(checkpoint / file)
        for name in [*tensors][:: max(1, len(tensors) // 8)]:
            for way in (lambda v: v * float("nan"), lambda v: v.double(), lambda v: v.flatten()[:0], None):
                fresh()
                changed = {key: value.clone() for key, value in tensors.items() if key != name or way}
                if way:
                    changed[name] = way(tensors[name]).clone()
                save_file(changed, folder / file)
                yield fault(f"{file}, {name}")


def arrays() -> dict[str, np.ndarray]:
    """A D4RL file of two episodes."""
    ends = np.zeros(60, bool)
    ends[[29, 59]] = True
    generator = np.random.default_rng(0)
    return {"observations": generator.normal(size=(60, 4)).astype(np.float32), "terminals": ends,
            "actions": generator.normal(size=(60, 2)).astype(np.float32), "rewards": np.zeros(60, np.float32),
            "timeouts": np.zeros(60, bool)}


def files(work: Path) -> Iterator[tally.Fault]:
    """Links out of files and folders, sizes that nothing stands behind, bombs, and arrays of another kind."""
    def hdf5(change: Built) -> Path:
        path = work / "a.hdf5"
        path.unlink(missing_ok=True)
        with h5py.File(path, "w") as file:
            for name, value in arrays().items():
                file[name] = value
            change(file)
        return path

    def replaced(name: str, value: Any) -> Built:
        def change(file: Any) -> None:
            del file[name]
            if value is not None:
                file[name] = value
        return change

    with h5py.File(work / "other.hdf5", "w") as file:
        file["observations"] = arrays()["observations"]
    np.zeros(240, np.float32).tofile(work / "raw")
    changes: dict[str, Built] = {"a link": replaced("observations", h5py.ExternalLink("other.hdf5", "/observations"))}

    def raw(file: Any) -> None:
        del file["observations"]
        file.create_dataset("observations", (60, 4), np.float32, external=[(str(work / "raw"), 0, 960)])

    def huge(file: Any) -> None:
        del file["observations"]
        file.create_dataset("observations", (10**11, 4), np.float32, chunks=(1000, 4))

    changes |= {"raw storage elsewhere": raw, "1.6 TB declared": huge}
    for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
        good = arrays()[name]
        wrong = {"short": good[:59], "long": np.concatenate([good, good[:1]]), "complex": good.astype(complex),
                 "strings": np.full(60, b"a"), "flat": good.reshape(-1)[:7], "of NaN": good + np.float32("nan"),
                 "deep": good.reshape(60, -1, 1, 1)}
        changes |= {f"{name} {what}": replaced(name, value) for what, value in wrong.items()}
    for name in ("observations", "actions"):
        changes[f"{name} missing"] = replaced(name, None)
    for what, change in changes.items():
        path = hdf5(change)
        yield tally.judged("hostile files", f"D4RL, {what}",
                           lambda path=path: Windows(load_episodes(path), horizon=4), always=True)
    yield from archives(work)


def archives(work: Path) -> Iterator[tally.Fault]:
    """npz and YAML that declare more than they hold, and links out of a folder of clips."""
    for shape, kind in (((2 * 10**12, 2, 2, 1), "|u1"), ((-1, 4), "|u1"), ((3,), "|O")):
        bad = zipfile.ZipFile(work / "bad.npz", "w", zipfile.ZIP_DEFLATED)
        with bad as archive, archive.open("win.npy", "w") as out:
            np.lib.format.write_array_header_1_0(out, {"descr": kind, "fortran_order": False, "shape": shape})
        yield tally.judged("hostile files", f"npz of {shape} {kind}", lambda: read_npz(work / "bad.npz", "pairs"),
                           always=True)
        folder = work / "clips"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(work / "bad.npz", folder / "a.npz")
        yield tally.judged("hostile files", f"clip of {shape} {kind}",
                           lambda folder=folder: VideoClips(folder, frames=2), always=True)
    folder = work / "linked"
    folder.mkdir(exist_ok=True)
    np.savez(work / "secret.npz", video=np.zeros((9, 8, 8, 3), np.uint8))
    (folder / "a.npz").symlink_to(work / "secret.npz")
    yield tally.judged("hostile files", "a clip that is a link out of its folder", lambda: VideoClips(folder, frames=2),
                       always=True)


def faults(work: Path, checkpoint: Path, every: int = 1) -> Iterator[tally.Fault]:
    """All of them; of the numeric keys, one of `every`."""
    for some in (nodes(), files(work), resealed(work, checkpoint), frames.faults(1000 // every),
                 numbers(every)):
        yield from some
