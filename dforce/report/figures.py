"""The pictures and films of a run's page: their order, size and captions."""

import base64
import mimetypes
import struct
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

PICTURES, FILMS = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"), (".mp4", ".webm")
FINE, BROAD = 420, 1300  # pixels of width: pictures below are enlarged, those above take the whole width of the page

# The order of pictures by the beginning of their name, and what they show.
KNOWN: dict[str, str] = {
    "plan": "A plan: candidates coloured by time, the chosen one strong, the executed path dark.",
    "animation": "The plan being carried out.",
    "grid": "Several episodes of the same maze.",
    "denoising": "The plan emerging from noise; left is the first estimate, right the last.",
    "score": "Scores by method with 95% intervals; dashed lines are reference drivers.",
    "schedule": "Schedule matrix: how noisy each token is at each sampling row.",
    "loss": "Training and held-out loss.",
    "errors": "What the denoiser errs by on held-out data, by the noise it is given.",
    "coverage": "Where the training data are.",
}


def figures(folder: Path, captions: dict[str, Any], *, embed: bool) -> list[str]:
    """Pictures and films of media/ as HTML, the most telling first. captions: by file name, in their order."""
    place = folder / "media"
    files = [file for file in place.rglob("*") if file.suffix.lower() in PICTURES + FILMS] if place.is_dir() else []
    return [_figure(folder, file, captions, embed) for file in _in_order(files, place, captions)]


def _in_order(files: Iterable[Path], place: Path, captions: dict[str, Any]) -> list[Path]:
    named, kinds = list(captions), list(KNOWN)

    def rank(file: Path) -> tuple[int, int, str]:
        name = file.relative_to(place).as_posix()
        kind = _kind(file)
        return (named.index(name) if name in named else len(named), kinds.index(kind) if kind else len(kinds), name)

    return sorted(files, key=rank)


def _kind(file: Path) -> str | None:
    return next((kind for kind in KNOWN if file.stem.lower().startswith(kind)), None)


def _figure(folder: Path, file: Path, captions: dict[str, Any], embed: bool) -> str:
    kind, width = _kind(file), _width(file)
    caption = str(captions.get(file.relative_to(folder / "media").as_posix(),
                               KNOWN[kind] if kind else file.stem.replace("_", " ")))
    source = quote(file.relative_to(folder).as_posix())
    if embed:
        mime = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        source = f"data:{mime};base64,{base64.b64encode(file.read_bytes()).decode()}"
    if file.suffix.lower() in FILMS:
        picture = f'<video src="{source}" controls loop muted autoplay playsinline></video>'
    else:
        look = ' class="fine"' if width and width < FINE else ""
        picture = f'<img src="{source}" alt="{escape(caption)}"{look} loading="lazy">'
    place = ' class="wide"' if width and width > BROAD else ""
    return f"<figure{place}>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _width(file: Path) -> int | None:
    """Pixels of a PNG's width; None of another file."""
    with file.open("rb") as stream:
        head = stream.read(24)
    return int(struct.unpack(">I", head[16:20])[0]) if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 24 else None
