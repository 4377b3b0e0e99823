"""Tables of README and docs from docs/results/*.json, in place: python scripts/tables.py [--check]

A table stands between `<!-- table FILE METRICS [key=value ...] -->` and `<!-- end -->`; all between is rewritten.
METRICS are separated by commas; key=value keeps the rows whose variant says so, or says nothing of the key; task=value
keeps those of a task. `_` may stand for a blank.
`--check` changes nothing and fails where a table is not what its file says.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from dforce.report.results import read_results
from dforce.report.table import markdown_table

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(r"(<!-- table (\S+) (\S+)((?: \S+=\S+)*) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(match: re.Match[str]) -> str:
    results = read_results(ROOT / match[2])
    known = {row["metric"] for row in results.rows}
    metrics = [name if name in known else name.replace("_", " ") for name in match[3].split(",")]
    wanted = dict(pair.split("=", 1) for pair in match[4].split())
    tasks = {row["task"] for row in results.rows}
    task = wanted.pop("task", None)
    task = task if task is None or task in tasks else task.replace("_", " ")
    rows = [row for row in results.rows if row["metric"] in metrics and task in (None, row["task"])
            and all(str(row["variant"].get(key, value)) == value for key, value in wanted.items())]
    return f"{match[1]}{markdown_table(rows, metrics=metrics).strip()}\n{match[5]}"


def main() -> int:
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        old = page.read_text(encoding="utf-8")
        new = MARK.sub(table, old)
        if new != old:
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    print(f"{'stale' if '--check' in sys.argv else 'rewritten'}: {', '.join(stale) or 'none'}")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
