"""The page of a run: `index.html` in the run folder, made from the folder's files and from nothing else.

It opens from disk without a network and shows what there is: a run that failed or has just begun has a page too.
"""

import base64
import json
import math
import mimetypes
import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dforce.report import page
from dforce.report.rows import read_results
from dforce.report.table import Table, tabulate, units_line

PICTURES, FILMS = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"), (".mp4", ".webm")

# The order of pictures by the beginning of their name, whether they take the whole width, and what they show.
KNOWN: dict[str, tuple[bool, str]] = {
    "plan": (False, "A plan: candidates coloured by time, the chosen one strong, the executed path dark."),
    "animation": (False, "The plan being carried out."),
    "grid": (True, "Several episodes of the same maze."),
    "errors": (False, "What the denoiser errs by on held-out data, by the noise it is given."),
    "denoising": (True, "The plan emerging from noise; left is the first estimate, right the last."),
    "score": (True, "Scores by method with 95% intervals; dashed lines are reference drivers."),
    "schedule": (False, "Schedule matrix: how noisy each token is at each sampling row."),
    "loss": (False, "Training and held-out loss."),
    "coverage": (False, "Where the training data are."),
}
SPARKS = 12  # a page shows this many metrics; metrics.jsonl has them all
PICTURED = "val_error_"  # metrics that have a picture, and so no sparkline
REFRESH = 10  # seconds between reloads while a run is in progress


def write_index(folder: str | Path, *, embed: bool = False) -> Path:
    """Write index.html into a run folder and return it.

    embed: put the pictures into the page (one file to send) instead of referring to media/. Captions come from
    media/captions.json ({file name: caption}, whose order wins) or from the names of the files. A file that is
    missing is left out, one that cannot be read is named on the page. Raises FileNotFoundError without the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run folder {str(folder)!r}")
    notes: list[str] = []
    status = _text(folder / "STATUS").strip()
    parts = [_head(folder, status, notes), _results(folder, notes), _media(folder, embed, notes),
             _metrics(folder, notes)]
    about = page.folded("config.yaml", _text(folder / "config.yaml")) + page.folded(
        "env.json", _text(folder / "env.json")
    )
    parts.append(f"<h2>Settings</h2>{about}" if about else "")
    parts[1:1] = [f'<p class="note">{escape(note)}</p>' for note in notes]
    text = page.document(_name(folder), parts, refresh=REFRESH if _word(status) == "running" else None)
    partial = folder / "index.html.part"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, folder / "index.html")
    return folder / "index.html"


def _name(folder: Path) -> str:
    return "/".join(folder.resolve().parts[-2:])


def _word(status: str) -> str:
    """The first word of STATUS: done, running or failed; anything else has no colour."""
    return status.replace(":", " ").split()[0].lower() if status else ""


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _object(file: Path, notes: list[str]) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none, with a note where it cannot be read."""
    try:
        content = json.loads(_text(file) or "{}")
    except ValueError as error:
        notes.append(f"{file.name} could not be read: {error}")
        return {}
    return content if isinstance(content, dict) else {}


def _head(folder: Path, status: str, notes: list[str]) -> str:
    """Title, status, command, and one line of facts."""
    env = _object(folder / "env.json", notes)
    header = _object(folder / "results.json", []).get("header")
    about = {**env, **(header if isinstance(header, dict) else {})}
    word = _word(status)
    badge = word if word in ("done", "failed", "running") else ""
    facts = [f"commit {str(about['commit'])[:12]}"] if about.get("commit") else []
    facts += [_duration(about["seconds"])] if _is_number(about.get("seconds")) else []
    facts += [f"peak memory {about['peak_memory_mb']:,.0f} MB"] if _is_number(about.get("peak_memory_mb")) else []
    facts += [str(about["time"])] if about.get("time") else []
    command = about.get("command", "")
    command = " ".join(map(str, command)) if isinstance(command, list) else str(command)
    return (
        f"<header><h1>{escape(_name(folder))}</h1>"
        f'<span class="status {badge}">{escape(word or "no status")}</span></header>'
        + (f'<p class="facts">{escape(" · ".join(facts))}</p>' if facts else "")
        + (f'<pre class="command">{escape(command)}</pre>' if command else "")
        + (f'<p class="note failed">{escape(status)}</p>' if badge == "failed" else "")
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _results(folder: Path, notes: list[str]) -> str:
    file = folder / "results.json"
    if not file.is_file():
        return ""
    try:
        tables = tabulate(read_results(file).rows)
    except ValueError as error:
        notes.append(f"results.json could not be shown: {error}")
        return ""
    shown = "".join(_table(table, named=len(tables) > 1) for table in tables)
    return f"<h2>Results{'' if len(tables) != 1 else ': ' + escape(tables[0].title)}</h2>{shown}" if tables else ""


def _table(table: Table, *, named: bool) -> str:
    lines = []
    for label, cells in zip(table.labels, table.cells, strict=True):
        inner = "".join(f"<td>{_cell(cell.text, cell.best)}</td>" for cell in cells)
        lines.append(f"<tr><td>{escape(label)}</td>{inner}</tr>")
    head = "".join(f"<th>{escape(heading)}</th>" for heading in ["method", *table.headings])
    return (
        (f"<h3>{escape(table.title)}</h3>" if named else "")
        + f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        + f'<p class="small">value [interval]; the best of a column is bold. {escape(units_line(table))}</p>'
    )


def _cell(text: str, best: bool) -> str:
    """The value in the colour of ink, its interval muted."""
    value, _, rest = text.partition(" ")
    strong = f"<b>{escape(value)}</b>" if best else escape(value)
    return f"{strong} <span>{escape(rest)}</span>" if rest else strong


def _media(folder: Path, embed: bool, notes: list[str]) -> str:
    place = folder / "media"
    captions = _object(place / "captions.json", notes)
    files = [file for file in place.rglob("*") if file.suffix.lower() in PICTURES + FILMS] if place.is_dir() else []
    figures = [_figure(folder, file, captions, embed) for file in _in_order(files, place, captions)]
    return f'<h2>Pictures</h2><div class="media">{"".join(figures)}</div>' if figures else ""


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
    kind = _kind(file)
    wide, known = KNOWN[kind] if kind else (False, file.stem.replace("_", " "))
    caption = str(captions.get(file.relative_to(folder / "media").as_posix(), known))
    source = quote(file.relative_to(folder).as_posix())
    if embed:
        mime = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        source = f"data:{mime};base64,{base64.b64encode(file.read_bytes()).decode()}"
    if file.suffix.lower() in FILMS:
        picture = f'<video src="{source}" controls loop muted autoplay playsinline></video>'
    else:
        picture = f'<img src="{source}" alt="{escape(caption)}" loading="lazy">'
    look = ' class="wide"' if wide else ""
    return f"<figure{look}>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _metrics(folder: Path, notes: list[str]) -> str:
    """A sparkline for each number of metrics.jsonl, by `step`; losses first."""
    series: dict[str, list[tuple[float, float]]] = {}
    broken = 0
    for count, line in enumerate(_text(folder / "metrics.jsonl").splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            broken += 1
            continue
        if not isinstance(record, dict):
            broken += 1
            continue
        step = record.get("step", count)
        for name, value in record.items():
            hidden = name in ("step", "seconds", "time") or name.startswith(PICTURED)
            if not hidden and _is_number(value) and _is_number(step):
                series.setdefault(name, []).append((step, value))
    if broken:
        notes.append(f"metrics.jsonl: {broken} lines could not be read and are left out")
    order = sorted(series, key=lambda name: ("loss" not in name.lower(), name))
    shown = "".join(page.sparkline(name, series[name]) for name in order[:SPARKS])
    more = f'<p class="small">{len(order) - SPARKS} more in metrics.jsonl</p>' if len(order) > SPARKS else ""
    return f'<h2>Metrics</h2><div class="sparks">{shown}</div>{more}' if shown else ""
