"""Tables of README, guides and result pages from docs/results/*.json: python scripts/release/tables.py [--check]

README and the guides (docs/*.md) hold tables between `<!-- table FILE METRICS [key=value ...] -->` and `<!-- end -->`;
what stands between is rewritten. The result pages (docs/results/pages/*.md) and their index (docs/results/README.md)
are written whole, from docs/results/pages.yaml: a list of sections, each with its tables, in the words of the marks.

METRICS: separated by commas. key=value: keep the rows whose variant says so, or does not have the key; task=, method=:
keep those of a task, a method. `_` may stand for a blank, `|` stands between values that will do. A table of more than
six numbers a line is split. Bold: what is clearly the best of a column; of differences, what the interval tells from 0.
`--check` changes nothing and fails where a file is not what the results say.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dforce.report.rows import Row, read_results
from dforce.report.table import ACROSS, markdown_table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
PAGES = RESULTS / "pages"
WIDEST = 6  # numbers a line: with the method's name a table of GitHub's width
LONG = 200  # characters of commands that are shown unfolded
MARK = re.compile(r"(<!-- table (\S+ [^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
GENERATED = "<!-- written by scripts/release/tables.py from docs/results: edit pages.yaml, not this file -->\n"
read = cache(read_results)  # a file has many tables


def select_rows(spec: str) -> tuple[list[Row], list[str]]:
    """The rows and the metrics that `FILE METRICS [key=value ...]` asks for; FILE is a name in docs/results."""
    file, names, *pairs = spec.split()
    rows = read(RESULTS / file).rows
    known = {row["metric"] for row in rows}
    metrics = [name if name in known else name.replace("_", " ") for name in names.split(",")]
    if unknown := sorted(set(metrics) - known):
        raise ValueError(f"{file} has no rows of {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    wanted = {key: {form for one in value.split("|") for form in (one, one.replace("_", " "))}
              for key, value in (pair.split("=", 1) for pair in pairs)}
    tasks, methods = (wanted.pop(key, None) for key in ("task", "method"))
    chosen = [row for row in rows if row["metric"] in metrics and (tasks is None or row["task"] in tasks)
              and (methods is None or row["method"] in methods)
              and all(str(row["variant"].get(key, next(iter(values)))) in values for key, values in wanted.items())]
    if not chosen:
        raise ValueError(f"no row of docs/results/{file} fits {spec!r}")
    return chosen, metrics


def table(spec: str) -> str:
    """The table, or several below one another where one would be too wide."""
    rows, metrics = select_rows(spec)
    return "\n\n".join(markdown_table(rows, metrics=part).strip() for part in split_metrics(rows, metrics))


def split_metrics(rows: list[Row], metrics: list[str]) -> list[list[str]]:
    """The metrics in parts of about equal width, each of at most WIDEST columns (a metric has one for each start)."""
    widths = {name: len({tuple(row["variant"].get(key) for key in ACROSS) for row in rows if row["metric"] == name})
              for name in metrics}
    total = sum(widths.values())
    width = math.ceil(total / math.ceil(total / WIDEST))
    parts: list[list[str]] = [[]]
    for name in metrics:
        if parts[-1] and sum(widths[other] for other in parts[-1]) + widths[name] > width:
            parts.append([])
        parts[-1].append(name)
    return parts


def origin(file: str) -> str:
    """The lines that name commit, machine and command in the header of a results file; long commands are folded."""
    header = read(RESULTS / file).header
    shown = ", ".join(f"`{one}`" for one in each(header["command"]))
    if folded := len(shown) > LONG:
        shown = f"<details><summary>Command</summary>\n\n{shown}\n\n</details>"
    about = f"From [{file}](../{file}), commit {commits(header)}, {machines(header)}"
    return f"{about}:\n\n{shown}" if folded else f"{about}: {shown}"


def machines(header: dict[str, Any]) -> str:
    """`AMD EPYC, 2 cores, 24 GB`, for each machine of a header."""
    return "; ".join(dict.fromkeys(map(machine_name, each(header["machine"]))))


def commits(header: dict[str, Any]) -> str:
    """The commits of a header, nine digits each."""
    return ", ".join(dict.fromkeys(one[:9] for one in each(header["commit"])))


def each(entry: Any) -> list[Any]:
    """An entry of a header as a list: pooled results name several commands, commits or machines."""
    return entry if isinstance(entry, list) else [entry]


def machine_name(machine: dict[str, Any]) -> str:
    """`AMD EPYC, 2 cores, 24 GB`."""
    gpu = [machine["gpu"]] if machine.get("gpu") else []
    return ", ".join([machine["processor"], f"{machine['cores']} cores", f"{machine['memory_gb']:.0f} GB", *gpu])


def page(name: str, content: dict[str, Any]) -> str:
    """One result page: a heading, its guide, and its sections."""
    parts = [GENERATED + f"# {content['title']}",
             f"{content['about'].strip()} Guide: [{name}](../../{name}.md). All results: [index](../README.md).",
             "Sections: " + " · ".join(f"[{one['title']}](#{anchor(one['title'])})" for one in content["sections"])]
    for one in content["sections"]:
        parts += list(section(one))
    return "\n\n".join(parts) + "\n"


def section(content: dict[str, Any]) -> Iterator[str]:
    """A section's parts: heading, what was measured, tables (the first of each file with its origin), pictures."""
    yield f"## {content['title']}"
    if content.get("about"):
        yield content["about"].strip()
    last = None
    for spec in content["tables"]:
        title, words = spec.split(": ", 1) if ": " in spec else ("", spec)
        file = words.split()[0]
        if file != last:
            yield origin(file)
        last = file
        if title:
            yield f"{title}:"
        yield table(words)
    for picture, caption in content.get("pictures", {}).items():
        yield f"![{caption}](../../img/{picture})"


def anchor(title: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def index(pages: dict[str, Any]) -> str:
    """The index: the pages, and each results file with the section that shows it."""
    parts = [GENERATED + f"# {pages['index']['title']}", pages["index"]["about"].strip()]
    lines = ["| file | shown in | commit | machine |", "| --- | --- | --- | --- |"]
    for name, content in pages["pages"].items():
        for one in content["sections"]:
            for file in dict.fromkeys(spec.split(": ", 1)[-1].split()[0] for spec in one["tables"]):
                header = read(RESULTS / file).header
                where = f"[{name}, {one['title']}](pages/{name}.md#{anchor(one['title'])})"
                lines.append(f"| [{file}]({file}) | {where} | {commits(header)} | {machines(header)} |")
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def wanted_files() -> dict[Path, str]:
    """All files that this script writes, with what should stand in them."""
    pages = yaml.safe_load((RESULTS / "pages.yaml").read_text(encoding="utf-8"))
    files = {PAGES / f"{name}.md": page(name, content) for name, content in pages["pages"].items()}
    files[RESULTS / "README.md"] = index(pages)
    for guide in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = guide.read_text(encoding="utf-8")
        files[guide] = MARK.sub(lambda match: f"{match[1]}{table(match[2])}\n{match[3]}", text)
    return files


def main() -> int:
    stale = []
    for file, text in wanted_files().items():
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            stale.append(str(file.relative_to(ROOT)))
            if "--check" not in sys.argv:
                file.parent.mkdir(exist_ok=True)
                file.write_text(text, encoding="utf-8")
    print(f"{'stale' if '--check' in sys.argv else 'rewritten'}: {', '.join(stale) or 'none'}")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
