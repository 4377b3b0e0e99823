"""Sealed folders: written whole or not at all, and no changed byte goes unnoticed.

A folder is written under a temporary name beside its place, flushed and renamed. Its MANIFEST.json holds size and
sha256 of every file, and a digest of itself (of 400 safetensors files with flipped bytes, 144 load as other weights).
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dforce.core.files import sha256

MANIFEST = "MANIFEST.json"
MB = 2**20


class CheckpointError(ValueError):
    """A checkpoint could not be written, found, verified or used; the message says which file and what is wrong."""


@contextmanager
def sealed(folder: Path, *, about: Mapping[str, Any], needed: int = 0) -> Iterator[Path]:
    """An empty folder to write files into, sealed and put at `folder` on leaving; CheckpointError if the disk refuses.

    about: JSON-able entries of the manifest. needed: bytes to be written, so that a disk too full is refused before.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    _sweep(folder)
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        if shutil.disk_usage(folder.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        temporary.mkdir()
        yield temporary
        _write_manifest(temporary, about)
        _replace(folder, temporary)
    except OSError as error:
        free = shutil.disk_usage(folder.parent).free
        raise CheckpointError(f"could not write {folder}: {error}. It needs {needed / MB:.1f} MB, {free / MB:.1f} MB "
                              "are free on that disk; what was saved before is untouched") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        recover(folder)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file; tensors may lie on any device, in any layout, and share memory. OSError: disk full."""
    seen: set[int] = set()
    ready = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.nbytes:  # safetensors refuses shared memory
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        ready[name] = value
    try:
        save_file(ready, path, metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def verified(folder: Path, *needed: str) -> dict[str, Any]:
    """The manifest, after every file is compared with it. needed: files that it must list, and so vouch for.

    Raises CheckpointError that names a damaged or missing file.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {MANIFEST}: it is no checkpoint, or was not written to its end")
    raw = path.read_bytes()
    try:
        manifest = json.loads(raw)
        digest = manifest.pop("digest")
        intact = _dump(manifest, digest) == raw and _digest(manifest) == digest
        entries = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise CheckpointError(f"{path} is damaged: its content does not match its own digest")
    for name in {**dict.fromkeys(needed), **entries}:
        file = folder / name
        if name not in entries or Path(name).name != name or not file.is_file():
            raise CheckpointError(f"{file} is missing" + (f" in {MANIFEST}" if name not in entries else ""))
        size = file.stat().st_size
        if size != entries[name][0]:
            raise CheckpointError(f"{file} is damaged: {size} bytes instead of {entries[name][0]}")
        if sha256(file) != entries[name][1]:
            raise CheckpointError(f"{file} is damaged: its sha256 is not the one in {MANIFEST}")
    return manifest


def recover(folder: Path) -> None:
    """If a process was killed between the two renames that replace `folder`, the old one is put back in its place."""
    for old in [] if folder.exists() else folder.parent.glob(f"{folder.name}.old-*"):
        if not _at_work(old):
            old.rename(folder)
            return


def _sweep(folder: Path) -> None:
    """Removes what killed writers of `folder` left behind."""
    for left in [*folder.parent.glob(f"{folder.name}.tmp-*"), *folder.parent.glob(f"{folder.name}.old-*")]:
        if not _at_work(left):
            shutil.rmtree(left, ignore_errors=True)


def _at_work(folder: Path) -> bool:
    """Is another process, the one that a temporary folder is named after, still alive?"""
    try:
        pid = int(folder.name.rpartition("-")[2])
        os.kill(pid, 0)
    except PermissionError:  # alive, and someone else's
        return True
    except (ValueError, OSError):
        return False
    return pid != os.getpid()


def _write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    files = {}
    for file in sorted(folder.iterdir()):
        _flush(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    manifest = {**about, "files": files}
    path = folder / MANIFEST
    path.write_bytes(_dump(manifest, _digest(manifest)))
    _flush(path)
    _flush(folder)


def _replace(folder: Path, new: Path) -> None:
    """Puts `new` at `folder`. A full folder cannot be renamed over: the old one steps aside first (see `recover`)."""
    old = folder.with_name(f"{folder.name}.old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Writes a file to the disk itself, so that neither a kill nor a power cut leaves a name without its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _dump(manifest: Mapping[str, Any], digest: str) -> bytes:
    """The only valid bytes of a manifest: even a changed space makes it differ."""
    return (json.dumps({**manifest, "digest": digest}, indent=1, sort_keys=True) + "\n").encode()
