"""The page of a run: `index.html` in the run folder, made from the folder's files and from nothing else.

It opens from disk without a network: first what came out, then how. A run that failed or has just begun has one too.
"""

import json
import math
import os
import re
from datetime import datetime
from html import escape
from itertools import takewhile
from pathlib import Path
from typing import Any

from dforce.report import page
from dforce.report.brief import brief_tables, sentence
from dforce.report.figures import figures
from dforce.report.rows import Results, read_results

SPARKS = 12  # a page shows this many metrics; metrics.jsonl has them all
PICTURED = "val_error_"  # metrics that have a picture, and so no sparkline
COUNTERS = ("step", "seconds", "time", "epoch", "queries", "lr")  # not drawn
REFRESH = 10  # seconds between reloads while a run is in progress
WORDS = ("done", "failed", "stopped", "running")


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
    status, env = _text(folder / "STATUS").strip(), _object(folder / "env.json", notes)
    results, series = _results(folder, notes), _series(folder, notes)
    captions = _object(folder / "media" / "captions.json", notes)
    pictures = figures(folder, captions, embed=embed)
    about = {**env, **(results.header if results else {})}
    title = _title(str(about.get("command", "")), folder)
    parts = [_head(title, status), _result(folder, status, results, series, pictures[:1]),
             *(f'<p class="note">{escape(note)}</p>' for note in notes),
             f'<h2>More pictures</h2><div class="media">{"".join(pictures[1:])}</div>' if pictures[1:] else "",
             _run(folder, about, series)]
    text = page.document(f"{title} · dforce", parts, refresh=REFRESH if _word(status) == "running" else None)
    partial = folder / "index.html.part"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, folder / "index.html")
    return folder / "index.html"


def _title(command: str, folder: Path) -> str:
    """`align image · <name of the folder>`: the command without its settings, and which of its runs."""
    words = command.split()
    verb = takewhile(str.isalpha, words[1:]) if words[:1] == ["dforce"] else ()
    return " · ".join(filter(None, [" ".join(verb), folder.resolve().name]))


def _word(status: str) -> str:
    """The first word of STATUS where it is one of WORDS, else ""."""
    word = re.split(r"[:;\s]", status, maxsplit=1)[0].lower()
    return word if word in WORDS else ""


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _object(file: Path, notes: list[str]) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none, with a note where it cannot be read."""
    try:
        content = json.loads(_text(file) or "{}")
    except (ValueError, RecursionError) as error:
        notes.append(f"{file.name} could not be read: {error}")
        return {}
    return content if isinstance(content, dict) else {}


def _head(title: str, status: str) -> str:
    word = _word(status)
    return (f"<header><h1>{escape(title)}</h1>"
            f'<span class="status {word}">{escape(word or "no status")}</span></header>')


def _result(folder: Path, status: str, results: Results | None, series: "Series", figure: list[str]) -> str:
    """What came out: a sentence, the first picture, a table of few metrics, and all of them behind a fold."""
    rows = results.rows if results else []
    said = str(results.header.get("summary") or "") if results else ""
    said = said or sentence(rows) or _of_training(series)
    trial = re.search(r"^fast_dev_run: true", _text(folder / "config.yaml"), re.MULTILINE)
    lead = [_ending(folder, status), said]
    lead += ["This was a trial (fast_dev_run): its numbers mean nothing."] if trial and said else []
    text = escape(" ".join(filter(None, lead)) or "The run is done; it has measured nothing.")
    tables = brief_tables(rows)
    shown = "".join(page.brief_table(table, named=len(tables) > 1) for table in tables)
    return (f'<section class="result"><p class="lead">{text}</p>' + "".join(figure) + shown
            + (page.folded(f"All {len(rows)} results", page.full_table(rows)) if rows else "") + "</section>")


def _ending(folder: Path, status: str) -> str:
    """How a run ended that is not done, and how to go on with it; "" for one that is done."""
    word = _word(status)
    resumable = "resume=" not in status and any((folder / "checkpoints").glob("step_*"))
    onward = f" The same command with resume={folder} goes on." if resumable else ""
    if word == "running":
        return "The run is in progress, or its process was killed; this page is read anew every ten seconds." + onward
    if word in ("failed", "stopped"):
        return status[:1].upper() + status[1:].rstrip(".") + "." + onward
    return "" if word == "done" else f"STATUS does not say how the run ended ({status[:200] or 'it is missing'})."


Series = dict[str, list[tuple[float, float]]]  # metric -> (step, value), finite


def _of_training(series: Series) -> str:
    """What the losses of a training say; "" where there are none."""
    loss, held_out = series.get("loss", []), series.get("val_loss", [])
    if not loss:
        return ""
    text = f"Trained for {loss[-1][0]:g} steps: the training loss is {loss[-1][1]:.3g}"
    if held_out:
        lowest = min(held_out, key=lambda point: point[1])
        text += f", the held-out loss {held_out[-1][1]:.3g} (lowest {lowest[1]:.3g}, at step {lowest[0]:g})"
    return text + "."


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _seconds(folder: Path, begin: str) -> float | None:
    """Seconds from the time in env.json until STATUS was written last; None where either is missing."""
    try:
        return (folder / "STATUS").stat().st_mtime - datetime.fromisoformat(begin).timestamp()
    except (OSError, ValueError):
        return None


def _results(folder: Path, notes: list[str]) -> Results | None:
    """results.json, None where it is missing or cannot be shown."""
    file = folder / "results.json"
    if not file.is_file():
        return None
    try:
        results = read_results(file)
        brief_tables(results.rows)
    except ValueError as error:
        notes.append(f"results.json could not be shown: {error}")
        return None
    return results


def _series(folder: Path, notes: list[str]) -> Series:
    """Every number of metrics.jsonl by `step`."""
    series: Series = {}
    broken = 0
    for count, line in enumerate(_text(folder / "metrics.jsonl").splitlines()):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            broken += 1
            continue
        step = record.get("step", count)
        for name, value in record.items():
            if _is_number(value) and _is_number(step):
                series.setdefault(name, []).append((step, value))
    if broken:
        notes.append(f"metrics.jsonl: {broken} line{'s' * (broken > 1)} could not be read and are left out")
    return series


def _run(folder: Path, about: dict[str, Any], series: Series) -> str:
    """How long it took, the command to repeat it, and behind folds its metrics, settings and environment."""
    seconds: Any = about.get("seconds", _seconds(folder, str(about.get("time"))))
    facts = [_duration(seconds)] if _is_number(seconds) else []
    facts += [f"peak memory {about['peak_memory_mb']:,.0f} MB"] if _is_number(about.get("peak_memory_mb")) else []
    facts += [str(about["time"])[:19].replace("T", " ")] if about.get("time") else []
    facts += [f"commit {str(about['commit'])[:12]}"] if about.get("commit") else []
    command = about.get("command", "")
    command = " ".join(map(str, command)) if isinstance(command, list) else str(command)
    moving = [name for name, points in series.items() if len({value for _, value in points}) > 1
              and name not in COUNTERS and not name.startswith(PICTURED)]
    order = sorted(moving, key=lambda name: ("loss" not in name.lower(), name))
    sparks = "".join(page.sparkline(name, series[name]) for name in order[:SPARKS])
    more = f'<p class="small">{len(order) - SPARKS} more in metrics.jsonl</p>' if len(order) > SPARKS else ""
    inner = ((f'<p class="facts">{escape(" · ".join(facts))}</p>' if facts else "")
             + (f"<p>To repeat it:</p>{page.block(command)}" if command else "")
             + page.folded("Metrics as the run went on", f'<div class="sparks">{sparks}</div>{more}' if sparks else "")
             + page.folded("Settings (config.yaml)", page.block(_text(folder / "config.yaml")))
             + page.folded("Environment (env.json)", page.block(_text(folder / "env.json"))))
    return f"<h2>The run</h2>{inner}" if inner else ""
