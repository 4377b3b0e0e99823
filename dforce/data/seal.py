"""Seals: digests of what is written, and a memory of which large files have been compared with theirs.

A file is hashed again whenever its size, its inode or a time of it has changed, so not at every start.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from dforce.core.files import replacing, sha256

CACHE_ROOT = "DFORCE_CACHE"
SETTLED = 0.1  # seconds: a file that changed so shortly ago may change again within one tick of the clock of files


def cache_root() -> Path:
    """The folder of indices, decoded clips and seals seen: $DFORCE_CACHE, else ~/.cache/dforce."""
    return Path(os.environ.get(CACHE_ROOT) or Path.home() / ".cache" / "dforce").expanduser()


def stamp(path: str | os.PathLike) -> list[Any]:
    """Numbers that change with a file's content: size, times, inode; of a folder also a digest of its files' ones."""
    status = os.stat(path)
    numbers: list[Any] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    if Path(path).is_dir():
        inner = sorted((str(file), stamp(file)) for file in Path(path).rglob("*") if file.is_file())
        numbers.append(hashlib.sha256(json.dumps(inner).encode()).hexdigest())
    return numbers


def leads_out(path: Path, root: Path) -> bool:
    """Is a path, with all links followed, outside of a folder?"""
    return not path.resolve().is_relative_to(root.resolve())


def at_rest(path: str | os.PathLike) -> bool:
    """Has the file been left alone for so long that another change would show in its stamp?"""
    files = [path, *(Path(path).rglob("*") if Path(path).is_dir() else [])]
    return time.time() - max(max(status.st_ctime, status.st_mtime) for status in map(os.stat, files)) > SETTLED


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON with a digest of itself, completely or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps({**content, "digest": _digest(content)}))


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote; None where there is nothing, or anything in it has changed."""
    try:
        content = json.loads(path.read_text())
        return content if content.pop("digest") == _digest(content) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def file_digest(path: str | os.PathLike) -> str:
    """The sha256 of a file, hashed unless its stamp is that of the last time."""
    place = os.path.abspath(path)
    memory = cache_root() / "digests" / f"{hashlib.sha256(place.encode()).hexdigest()[:20]}.json"
    before = stamp(place)
    known = read_sealed(memory) or {}
    if known.get("path") == place and known.get("stamp") == before:
        return str(known["sha256"])
    digest = sha256(place)
    if at_rest(place) and stamp(place) == before:
        try:
            write_sealed(memory, {"path": place, "stamp": before, "sha256": digest})
        except OSError:
            pass  # it is hashed again the next time
    return digest


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
