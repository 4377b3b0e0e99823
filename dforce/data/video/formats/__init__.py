"""Formats of clips on disk. A new one is a module with a `Clip` and a line here."""

from pathlib import Path

from dforce.data.video.clip import Clip
from dforce.data.video.formats.film import FilmClip, FrameFolder
from dforce.data.video.formats.npz import NpzClip

FORMATS: dict[str, type[Clip]] = {kind.__name__: kind for kind in (NpzClip, FilmClip, FrameFolder)}
SUFFIXES = {suffix: kind for kind in FORMATS.values() for suffix in kind.suffixes}  # of a file that is a clip
PARTS = {suffix: kind for kind in FORMATS.values() for suffix in kind.parts}  # of files whose folder is a clip


def format_of(path: Path) -> type[Clip]:
    """The format of a file or a folder of pictures; a file of no known suffix is taken for a film."""
    if path.is_dir():
        return next((PARTS[suffix] for file in path.iterdir() if (suffix := file.suffix.lower()) in PARTS), FrameFolder)
    return SUFFIXES.get(path.suffix.lower(), FilmClip)
