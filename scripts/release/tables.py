"""Tables of README and docs from docs/results/*.json, in place: python scripts/release/tables.py [--check]

A table stands between `<!-- table FILE METRICS [key=value ...] -->` and `<!-- end -->`; all between is rewritten.
METRICS are separated by commas; key=value keeps the rows whose variant says so, or says nothing of the key; task=value
keeps those of a task, method=value those of a method. `_` may stand for a blank, `|` stands between values that will
do. Under its first table in docs a file names its command and commit. Bold: the best of a column, or in a column of
differences those whose interval leaves zero out.
`--check` changes nothing and fails where a table is not what its file says.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from dforce.report.rows import Results, read_results
from dforce.report.table import markdown_table

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"(<!-- table (\S+) (\S+)((?: \S+=\S+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
read = cache(read_results)  # a file has many tables


def table(match: re.Match[str], results: Results, made: str) -> str:
    """One table anew. made: a line about where it comes from, for below it."""
    known = {row["metric"] for row in results.rows}
    metrics = [name if name in known else name.replace("_", " ") for name in match[3].split(",")]
    wanted = {key: {form for one in value.split("|") for form in (one, one.replace("_", " "))}
              for key, value in (pair.split("=", 1) for pair in match[4].split())}
    tasks, methods = (wanted.pop(key, None) for key in ("task", "method"))
    rows = [row for row in results.rows if row["metric"] in metrics and (tasks is None or row["task"] in tasks)
            and (methods is None or row["method"] in methods)
            and all(str(row["variant"].get(key, next(iter(values)))) in values for key, values in wanted.items())]
    return f"{match[1]}{markdown_table(rows, metrics=metrics).strip()}\n{made}{match[5]}"


def tables(page: str, *, origin: bool) -> str:
    """A page with all its tables anew. origin: whether each file says at its first one how it was made."""
    told: set[str] = set()

    def anew(match: re.Match[str]) -> str:
        results, first = read(ROOT / match[2]), origin and match[2] not in told
        told.add(match[2])
        return table(match, results, made_by(results.header) if first else "")

    return MARK.sub(anew, page)


def made_by(header: dict[str, Any]) -> str:
    """The line that names the commands and commits in the header of a results file."""
    commands, commits = (dict.fromkeys(header[key] if isinstance(header[key], list) else [header[key]])
                         for key in ("command", "commit"))
    return f"\nMade by {', '.join(f'`{one}`' for one in commands)}, commit {', '.join(one[:9] for one in commits)}.\n"


def main() -> int:
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        old = page.read_text(encoding="utf-8")
        new = tables(old, origin=page.name != "README.md")
        if new != old:
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    print(f"{'stale' if '--check' in sys.argv else 'rewritten'}: {', '.join(stale) or 'none'}")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
