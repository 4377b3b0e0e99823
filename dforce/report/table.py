"""Tables made from result rows: one line a method, one column a metric; the same table as markdown or as HTML."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

from dforce.report.rows import Row, settled

ACROSS = ("starts",)  # variant keys that spread over columns instead of lines
DIFFERENCE = "_difference"  # ending of the metric of a paired difference


class Cell(NamedTuple):
    """One number of a table."""

    text: str  # `value [low, high]`
    row: Row | None
    best: bool = False  # clearly, of its column; of differences, that the interval leaves zero out


class Table(NamedTuple):
    """headings: [C] of the value columns; labels: [L] of the lines; cells: [L][C]; units: metric -> unit."""

    title: str
    headings: list[str]
    labels: list[str]
    cells: list[list[Cell]]
    units: dict[str, str]


def digits_for(rows: Iterable[Row]) -> int:
    """Decimals shared by a column: three significant ones of its largest number, up to two more where its smallest
    would be 0 and is more than that; none for whole numbers alone."""
    rows = list(rows)
    sizes = [abs(value) for row in rows for value in (row["value"], row["low"], row["high"]) if value]
    if not sizes or all(size.is_integer() for size in map(float, sizes)):
        return 0
    certain = [abs(row["value"]) for row in rows if row["value"] and not _around_zero(row)]
    for_largest = 2 - math.floor(math.log10(max(sizes) * 1.0005))  # 99.96 is written 100
    for_smallest = -math.floor(math.log10(min(certain))) if certain else 0
    return min(max(for_largest, min(for_smallest, for_largest + 2), 0), 6)


def _around_zero(row: Row) -> bool:
    return row["low"] is not None and row["high"] is not None and row["low"] <= 0 <= row["high"]


def number(value: float | None, digits: int) -> str:
    """`digits` decimals, a dash for None; never "-0"."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text if text.strip("-0.") else text.lstrip("-")


def value_with_interval(row: Row, digits: int) -> str:
    """`value [low, high]`, or the value alone where no interval was measured."""
    if row["value"] is None or row["low"] is None:
        return number(row["value"], digits)
    return f"{number(row['value'], digits)} [{number(row['low'], digits)}, {number(row['high'], digits)}]"


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


def tabulate(rows: Iterable[Row], *, metrics: Sequence[str] | None = None, across: Sequence[str] = ACROSS,
             differences: Iterable[Row] = ()) -> list[Table]:
    """One table a task. Two rows for one cell: ValueError with both values.

    metrics: which, in order (default: all). differences: rows of paired differences that may show what is best, beside
    those in `rows`.
    """
    rows = list(rows)
    paired = [row for row in (*rows, *differences) if row["metric"].endswith(DIFFERENCE)]
    known = list(dict.fromkeys(row["metric"] for row in rows))
    for metric in metrics or ():
        if metric not in known:
            raise ValueError(f"no row has the metric {metric!r}; there are {', '.join(known) or 'no rows at all'}")
    chosen = [row for metric in (metrics or known) for row in rows if row["metric"] == metric]
    return [_one_task(task, rows, chosen, across, paired) for task in dict.fromkeys(row["task"] for row in rows)]


def _one_task(task: str, rows: list[Row], chosen: list[Row], across: Sequence[str], paired: list[Row]) -> Table:
    labels = line_labels([row for row in rows if row["task"] == task], across=across)
    chosen = [row for row in chosen if row["task"] == task]
    placed: dict[tuple[Any, ...], dict[tuple[Any, ...], Row]] = {}
    for row in chosen:
        spread = tuple(row["variant"].get(key) for key in across)
        column = placed.setdefault((row["metric"], *spread), {})
        key = line_key(row, across=across)
        if key in column:
            values = f"{column[key]['value']} and {row['value']}"
            raise ValueError(f"two rows for {labels[key]!r}, metric {row['metric']!r}, task {task!r}: {values}; "
                             "select one, or name in variant what differs")
        column[key] = row
    order = [key for key in labels if any(key in column for column in placed.values())]
    columns = [_column(column, order, paired) for column in placed.values()]
    headings = [_heading(name, list(column.values())) for name, column in placed.items()]
    units = {row["metric"]: row["unit"] for row in chosen if row["unit"]}
    cells = [list(line) for line in zip(*columns, strict=True)]
    return Table(task, headings, [labels[key] for key in order], cells, units)


def units_line(table: Table) -> str:
    """`score: D4RL-normalised x100 · success: fraction`."""
    return " · ".join(f"{metric}: {unit}" for metric, unit in table.units.items())


def _column(column: dict[tuple[Any, ...], Row], order: list[tuple[Any, ...]], paired: list[Row]) -> list[Cell]:
    rows = list(column.values())
    counts, digits = {row["n"] for row in rows}, digits_for(rows)
    cells = []
    for key in order:
        row = column.get(key)
        if row is None:
            cells.append(Cell("", None))
            continue
        count = f" (n={row['n']})" if len(counts) > 1 else ""
        bold = (settled(row["low"], row["high"]) if row["metric"].endswith(DIFFERENCE) else
                len(rows) > 1 and all(_beats(row, other, rows, paired) for other in rows if other is not row))
        cells.append(Cell(value_with_interval(row, digits) + count, row, bold))
    return cells


def _beats(row: Row, other: Row, rows: list[Row], paired: list[Row]) -> bool:
    """Is a row of a column clearly better: by intervals that do not meet, or by a paired difference clear of zero?"""
    sign = {True: 1, False: -1, None: 0}[row["higher_is_better"]]
    if None in (row["value"], other["value"]):
        return sign != 0 and row["value"] is not None
    if sign * (cast(float, row["value"]) - cast(float, other["value"])) <= 0:
        return False
    low, high = (row["low"], other["high"]) if sign > 0 else (other["low"], row["high"])
    if low is not None and high is not None and low > high:
        return True
    methods = [each["method"] for each in rows]
    names = (f"{row['method']} - {other['method']}", f"{other['method']} - {row['method']}")
    return methods.count(row["method"]) == methods.count(other["method"]) == 1 and any(
        each["metric"] == row["metric"] + DIFFERENCE and each["method"] in names
        and each["task"].startswith(row["task"]) and each["variant"].get("starts") == row["variant"].get("starts")
        and settled(each["low"], each["high"]) for each in paired)


def _heading(name: tuple[Any, ...], rows: list[Row]) -> str:
    """`metric, starts (n) ↑`; n where all lines share it, the arrow where higher or lower is better."""
    metric, *spread = name
    where = "".join(f", {value}" for value in spread if value is not None)
    counts, better = {row["n"] for row in rows}, {row["higher_is_better"] for row in rows}
    arrow = " ↑" if better == {True} else " ↓" if better == {False} else ""
    return metric + where + "".join(f" (n={n})" for n in counts if len(counts) == 1) + arrow


def markdown_table(rows: Iterable[Row], *, metrics: Sequence[str] | None = None, across: Sequence[str] = ACROSS) -> str:
    """Markdown: methods as lines, metrics as columns with `value [low, high]`, the clearly best of a column in bold.

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
        text += f"\n\n{units_line(table)}" if table.units else ""
        parts.append(f"**{table.title}**\n\n{text}" if len(tables) > 1 else text)
    return "\n\n".join(parts) + ("\n" if parts else "")


def csv_table(rows: Iterable[Row]) -> str:
    """One line a row, for spreadsheets and data frames: each key of the variants has a column of its own."""
    rows = list(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row["variant"]))
    plain = ("metric", "value", "low", "high", "n", "seeds", "unit", "higher_is_better")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "method", *keys, *plain])
    for row in rows:
        named = [row["variant"].get(key) for key in keys]
        writer.writerow([row["task"], row["method"], *named, *(cast(dict, row)[key] for key in plain)])
    return text.getvalue()
