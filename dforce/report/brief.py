"""What is said first of many rows of results: one sentence, and a table of few metrics. The rest stays in the full one.
"""

from collections.abc import Iterable
from itertools import groupby

from dforce.report.rows import Row, settled
from dforce.report.table import DIFFERENCE, Cell, Table, digits_for, tabulate, value_with_interval

COLUMNS = 5  # of numbers in a brief table: with the methods' names it has six
FIRST = (  # metrics, the most telling first
    "score", "success", "reached", "held", "in_wall", "leaps", "return", "reward", "held_out_reward", "class_accuracy",
    "accuracy", "broken off", "frechet / floor", "error / copying", "change / real", "action seen / real", "bad frames",
    "frozen windows", "frames per second", "diversity_share", "diversity", "kl", "frechet", "pair_accuracy",
    "rank_correlation", "speed-up", "time", "error from noise", "error of copying")


def few_metrics(rows: Iterable[Row]) -> list[Row]:
    """The rows that a brief table shows: of each task the most telling metrics, those of differences apart.

    A metric that is not in FIRST is left out where others are.
    """
    kept = []
    for _, group in groupby(sorted(rows, key=_group), key=_group):
        columns: dict[str, list[Row]] = {}
        for row in group:
            columns.setdefault(row["metric"], []).append(row)
        names, width = sorted(columns, key=_rank), 0
        for name in names:
            width += len({row["variant"].get("starts") for row in columns[name]})
            if name == names[0] or width <= COLUMNS and (_rank(name) < len(FIRST)) == (_rank(names[0]) < len(FIRST)):
                kept += columns[name]
    return kept


def brief_tables(rows: Iterable[Row]) -> list[Table]:
    """A table of `few_metrics` for each task, and one for the differences between its methods."""
    rows = list(rows)
    differences, tables = [row for row in rows if row["metric"].endswith(DIFFERENCE)], []
    for (task, apart), group in groupby(few_metrics(rows), key=_group):
        table, = tabulate(group, differences=differences)
        title = f"{task.removesuffix(', paired differences')}: differences between methods" if apart else task
        tables.append(table._replace(title=title))
    return tables


def sentence(rows: Iterable[Row]) -> str:
    """What was gained on the base, else what the first column of the first brief table says; "" without numbers."""
    rows = few_metrics(rows)
    gain = next((row for row in rows if row["metric"].endswith(DIFFERENCE) and row["method"].endswith(" - base")), None)
    if gain is not None:
        known = settled(gain["low"], gain["high"])
        return (f"{gain['method']}: {gain['metric'].removesuffix(DIFFERENCE).replace('_', ' ')}{_starts(gain)} "
                f"{'clearly differs' if known else 'does not clearly differ'}, by "
                f"{value_with_interval(gain, digits_for([gain]))}.")
    table = next(iter(brief_tables(rows)), None)
    lines = [] if table is None else [(label, cells[0]) for label, cells in zip(table.labels, table.cells, strict=True)
                                      if cells[0].row is not None and cells[0].row["value"] is not None]
    if table is None or not lines:
        return ""
    first = lines[0][1].row
    assert first is not None
    metric = f"{first['metric'].replace('_', ' ')}{_starts(first)}"
    if len(lines) == 1:
        return f"{table.title}: {metric} of {lines[0][0]} is {lines[0][1].text}."
    if first["higher_is_better"] is None or len({cell.row["method"] for _, cell in lines if cell.row}) == 1:
        return f"{table.title}: {metric} is " + ", ".join(f"{cell.text} for {label}" for label, cell in lines[:4]) + "."
    order = sorted(lines, key=lambda line: _value(line[1]), reverse=first["higher_is_better"])
    (best, top), (next_best, second) = order[:2]
    if top.best:
        return (f"{table.title}: {best} has the {'highest' if first['higher_is_better'] else 'lowest'} {metric}, "
                f"{top.text}; next is {next_best} with {second.text}.")
    return f"{table.title}: {metric} does not clearly tell {best} ({top.text}) from {next_best} ({second.text})."


def _starts(row: Row) -> str:
    return f" from {row['variant']['starts']} starts" if "starts" in row["variant"] else ""


def _value(cell: Cell) -> float:
    return 0.0 if cell.row is None else cell.row["value"] or 0.0


def _group(row: Row) -> tuple[str, bool]:
    """What shares a table: rows of a task, differences between its methods apart."""
    return row["task"], row["metric"].endswith(DIFFERENCE)


def _rank(metric: str) -> int:
    name = metric.removesuffix(DIFFERENCE)
    return FIRST.index(name) if name in FIRST else len(FIRST)
