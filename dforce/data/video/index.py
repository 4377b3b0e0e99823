"""Finds the clips of a data set in any of several layouts, and gives the reason for every file that it leaves out.

Layouts: TECO's DMLab (npz) and Minecraft (mp4 with an npz of actions beside it), in folders {train|training,
test|val|validation} or not; folders of films; folders of pictures; Minari and LeRobot data sets with cameras.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dforce.data.seal import at_rest, cache_root, leads_out, read_sealed, stamp, write_sealed
from dforce.data.store import CHECKSUMS, datasets_root, list_datasets, verify_checksums
from dforce.data.video.clip import ACTIONS, BadClip, Clip, ClipSet, natural
from dforce.data.video.formats import FORMATS, PARTS, SUFFIXES, format_of
from dforce.data.video.formats.film import FilmClip
from dforce.data.video.formats.lerobot import lerobot_clips
from dforce.data.video.formats.minari import minari_clips

SPLITS = {"train": "train", "training": "train", "test": "val", "val": "val", "validation": "val"}
INDEX_FORMAT = 3


def find_clips(data: str | os.PathLike, *, fps: float | None = None,
               advance: Callable[[float], object] = lambda share: None) -> ClipSet:
    """The clips of a folder, a file or a Minari data set; facts about files are kept in the cache folder.

    advance: told the share of each file of a folder.
    """
    root = Path(data).expanduser()
    minari = next((f for f in (root, datasets_root() / str(data)) if (f / "data" / "metadata.json").is_file()), None)
    if minari is not None:
        return minari_clips(minari)
    if not root.exists():
        raise ValueError(_unknown(str(data)))
    if (lerobot := lerobot_clips(root)) is not None:
        return lerobot
    if next(root.glob("*/dataset_info.json"), None) or next(root.glob("**/*.tfrecord*"), None):
        raise ValueError(f"{root} is a TFDS folder, as TECO's pre-encoded (VQ) data are; they hold codes and no "
                         "frames: give the folder of the npz or mp4 files")
    index = _Index(root)
    clips = _search(root, index, fps, advance)
    index.save()
    if not clips.names:
        films = ", ".join(FilmClip.suffixes)
        raise ValueError(f"{root} holds no clip: no npz, no film ({films}), no folder of pictures")
    return clips


def _search(root: Path, index: _Index, fps: float | None, advance: Callable[[float], object]) -> ClipSet:
    out = ClipSet([], [], {}, [], [], title=str(root))
    paths, links = ([root], []) if root.is_file() else _candidates(root)
    for folder in sorted({path.parent for path in paths if (path.parent / CHECKSUMS).is_file()}):
        verify_checksums(folder, remember=True)
    for link in links:
        out.names.append(link.relative_to(root).as_posix())
        out.skipped[out.names[-1]] = "a link out of the folder is not followed; put the file itself there"
    films = {path.with_suffix("") for path in paths if path.suffix.lower() in FilmClip.suffixes}
    for path in paths:
        advance(1 / len(paths))
        if path.suffix == ".npz" and path.with_suffix("") in films:
            continue  # the actions of that film
        name = path.relative_to(root).as_posix() if path != root else path.name
        out.names.append(name)
        try:
            clip = index.clip(path, name, fps)
        except BadClip as error:
            out.skipped[name] = str(error)
            continue
        if isinstance(clip, FilmClip) and (beside := path.with_suffix(".npz")).is_file() and beside not in links:
            clip.action_path = str(beside)
        out.clips.append(clip)
        out.split.append(next((SPLITS[part.lower()] for part in Path(name).parts if part.lower() in SPLITS), None))
    return out


def _candidates(root: Path) -> tuple[list[Path], list[Path]]:
    """Npz files, films and folders of pictures, in natural order, without hidden ones; and links out of the folder."""
    files, folders, out = [], [], []
    splits = {p.name for p in root.iterdir() if p.is_dir() and p.name.lower() in SPLITS}
    seen = {root.resolve()}
    for place, inner, names in os.walk(root, followlinks=True):
        if splits and Path(place) == root:
            inner[:], names[:] = [n for n in inner if n in splits], []
        inner[:] = sorted((n for n in inner if not n.startswith(".")), key=natural)
        here = [Path(place) / n for n in sorted(names, key=natural) if not n.startswith(".")]
        links = {p for p in [*here, *(Path(place) / n for n in inner)] if p.is_symlink() and leads_out(p, root)}
        out += sorted(links)
        real = {(Path(place) / n).resolve(): n for n in reversed(inner) if Path(place) / n not in links}
        inner[:] = [n for n in inner if n in {real[path] for path in real.keys() - seen}]
        seen |= real.keys()
        files += [p for p in here if p.suffix.lower() in SUFFIXES and p.name != f"{ACTIONS}.npz" and p not in links]
        if any(p.suffix.lower() in PARTS for p in here) and not links & set(here):
            folders.append(Path(place))
    return sorted(files + folders, key=lambda p: natural(p.relative_to(root).as_posix())), out


class _Index:
    """Facts about files, kept between runs; those of a file hold until its stamp differs."""

    def __init__(self, root: Path) -> None:
        digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
        self.file = cache_root() / "clips" / f"{digest}.json"
        self.new = False
        stored = read_sealed(self.file) or {}  # where there is none, or it is damaged, a new one is made
        self.entries: dict[str, dict[str, Any]] = stored["files"] if stored.get("format") == INDEX_FORMAT else {}

    def clip(self, path: Path, name: str, fps: float | None) -> Clip:
        """The clip from the index, else from its format's `probe`. BadClip is remembered and raised again."""
        marks = [*stamp(path), fps]
        entry = self.entries.get(str(path))
        if entry and entry["stamp"] == marks:
            if "bad" in entry:
                raise BadClip(entry["bad"])
            stored: dict[str, Any] = {key: range(*value["range"]) if isinstance(value, dict) else value
                      for key, value in entry["clip"].items()}
            return FORMATS[entry["kind"]](**{**stored, "name": name})
        entry, self.new = {"stamp": marks}, True
        if at_rest(path):
            self.entries[str(path)] = entry
        try:
            clip = format_of(path).probe(path, name, fps=fps)
        except BadClip as error:
            entry["bad"] = str(error)
            raise
        fields = {key: {"range": [value.start, value.stop, value.step]} if isinstance(value, range) else value
                  for key, value in asdict(clip).items()}
        entry.update(kind=type(clip).__name__, clip=fields)
        return clip

    def save(self) -> None:
        """Writes the index; a cache folder that cannot be written to is no error, it only costs time."""
        if not self.new:
            return
        try:
            write_sealed(self.file, {"format": INDEX_FORMAT, "files": self.entries})
        except OSError:
            pass


def describe(skipped: dict[str, str], looked_at: int) -> str:
    """One line about the clips that are left out: their number, and the first name for each reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        reasons.setdefault(reason, []).append(name)
    shown = [f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
             for reason, names in list(reasons.items())[:8]]
    more = [f"and {len(reasons) - 8} other reasons"] if len(reasons) > 8 else []
    return f"{len(skipped)} of {looked_at} clips are left out ({'; '.join([*shown, *more])})"


def _unknown(name: str) -> str:
    there = list_datasets()
    near = difflib.get_close_matches(name, [*there, "balls"], 1, 0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return (f"there is no folder, file or Minari data set {name!r}{hint}. Clips are made by `dforce data video`; "
            "'balls' needs no files")


def several(values: Iterable[tuple[str, str]]) -> str:
    """(value, name of the clip that has it) -> each value, with how many have it and the first of them."""
    names: dict[str, list[str]] = {}
    for value, name in values:
        names.setdefault(value, []).append(name)
    return ", ".join(f"{value} ({len(having)}, {having[0]})" for value, having in names.items())
