"""Tables made from result rows: one line a method, one column a metric; the same table as markdown or as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dforce.report.results import Row

ACROSS = ("starts",)  # variant keys that spread over columns instead of lines


class Cell(NamedTuple):
    """One number of a table; `text` is `value [low, high]`, `best` marks the best of its column."""

    text: str
    row: Row | None
    best: bool = False


class Table(NamedTuple):
    """headings: [C] of the value columns; labels: [L] of the lines; cells: [L][C]."""

    title: str
    headings: list[str]
    labels: list[str]
    cells: list[list[Cell]]


def number(value: float | None) -> str:
    """Three significant digits, whole numbers from 100 on, never an exponent below a million; None is a dash."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 1e6 or (size and size < 1e-3):
        return f"{value:.2e}"
    digits = 0 if size >= 99.95 or value == int(value) else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text  # no "-0.0"


def value_with_interval(row: Row) -> str:
    """`value [low, high]`, or the value alone where no interval was measured."""
    if row["value"] is None or row["low"] is None:
        return number(row["value"])
    return f"{number(row['value'])} [{number(row['low'])}, {number(row['high'])}]"


def line_labels(rows: Iterable[Row], *, across: Sequence[str] = ACROSS) -> dict[tuple[Any, ...], str]:
    """Label of every table line, keyed by `line_key`, in order of appearance: the method and what varies within it."""
    rows = list(rows)
    variants: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        variants.setdefault((row["task"], row["method"]), []).append(row["variant"])
    labels = {}
    for row in rows:
        siblings = variants[row["task"], row["method"]]
        varies = {key for key in row["variant"] if len({repr(other.get(key)) for other in siblings}) > 1} - set(across)
        shown = [f"{key}={value}" for key, value in row["variant"].items() if key in varies]
        labels[line_key(row, across=across)] = ", ".join([row["method"], *shown])
    return labels


def line_key(row: Row, *, across: Sequence[str] = ACROSS) -> tuple[Any, ...]:
    """What makes rows share a line: task, method and the variant without the keys that spread over columns."""
    return (row["task"], row["method"], *sorted((k, repr(v)) for k, v in row["variant"].items() if k not in across))


def tabulate(
    rows: Iterable[Row], *, metrics: Sequence[str] | None = None, across: Sequence[str] = ACROSS
) -> list[Table]:
    """One table a task. metrics: which, in order (default: all). Two rows for one cell: ValueError with both values."""
    rows = list(rows)
    known = list(dict.fromkeys(row["metric"] for row in rows))
    for metric in metrics or ():
        if metric not in known:
            raise ValueError(f"no row has the metric {metric!r}; there are {', '.join(known) or 'no rows at all'}")
    chosen = [row for metric in (metrics or known) for row in rows if row["metric"] == metric]
    return [_one_task(task, rows, chosen, across) for task in dict.fromkeys(row["task"] for row in rows)]


def _one_task(task: str, rows: list[Row], chosen: list[Row], across: Sequence[str]) -> Table:
    labels = line_labels([row for row in rows if row["task"] == task], across=across)
    chosen = [row for row in chosen if row["task"] == task]
    placed: dict[tuple[Any, ...], dict[tuple[Any, ...], Row]] = {}
    for row in chosen:
        spread = tuple(row["variant"].get(key) for key in across)
        column = placed.setdefault((row["metric"], *spread), {})
        key = line_key(row, across=across)
        if key in column:
            values = f"{column[key]['value']} and {row['value']}"
            raise ValueError(
                f"two rows for {labels[key]!r}, metric {row['metric']!r}, task {task!r}: {values}; "
                "select one, or name in variant what differs"
            )
        column[key] = row
    order = [key for key in labels if any(key in column for column in placed.values())]
    columns = [_column(column, order) for column in placed.values()]
    headings = [_heading(name, list(column.values())) for name, column in placed.items()]
    return Table(task, headings, [labels[key] for key in order], [list(line) for line in zip(*columns, strict=True)])


def _column(column: dict[tuple[Any, ...], Row], order: list[tuple[Any, ...]]) -> list[Cell]:
    found = [row for row in column.values() if row["value"] is not None]
    better = {row["higher_is_better"] for row in found}
    best = None
    if len(found) > 1 and better in ({True}, {False}):
        best = (max if better == {True} else min)(row["value"] for row in found)
    counts = {row["n"] for row in column.values()}
    cells = []
    for key in order:
        row = column.get(key)
        if row is None:
            cells.append(Cell("", None))
            continue
        count = f" (n={row['n']})" if len(counts) > 1 else ""
        cells.append(Cell(value_with_interval(row) + count, row, best is not None and row["value"] == best))
    return cells


def _heading(name: tuple[Any, ...], rows: list[Row]) -> str:
    """`metric, starts (unit, n) ↑`; n where all lines share it, the arrow where higher or lower is better."""
    metric, *spread = name
    where = "".join(f", {value}" for value in spread if value is not None)
    units, counts = {row["unit"] for row in rows} - {""}, {row["n"] for row in rows}
    notes = [*sorted(units), *(f"n={n}" for n in counts if len(counts) == 1)]
    better = {row["higher_is_better"] for row in rows}
    arrow = " ↑" if better == {True} else " ↓" if better == {False} else ""
    return metric + where + (f" ({', '.join(notes)})" if notes else "") + arrow


def markdown_table(rows: Iterable[Row], *, metrics: Sequence[str] | None = None, across: Sequence[str] = ACROSS) -> str:
    """Markdown: methods as lines, metrics as columns with `value [low, high]`, the best of a column in bold.

    Columns are metrics times the values of the variant keys in `across` (starts: all, blocked). Several tasks give
    several tables, each under a line with its name.
    """
    tables = tabulate(rows, metrics=metrics, across=across)
    parts = []
    for table in tables:
        lines = [["method", *table.headings], ["---"] + ["---:"] * len(table.headings)]
        for label, cells in zip(table.labels, table.cells, strict=True):
            lines.append([label, *(f"**{cell.text}**" if cell.best else cell.text for cell in cells)])
        text = "\n".join("| " + " | ".join(part.replace("|", "\\|") for part in line) + " |" for line in lines)
        parts.append(f"**{table.title}**\n\n{text}" if len(tables) > 1 else text)
    return "\n\n".join(parts) + ("\n" if parts else "")
