"""Tables for a terminal: plain text of at most 80 columns, the first metrics of each; the page has the others."""

import textwrap
from collections.abc import Iterable, Sequence

from dforce.report.rows import Row
from dforce.report.table import ACROSS, Table, tabulate, units_line

WIDTH, LABEL, GAP = 80, 30, "  "


def terminal_table(rows: Iterable[Row], *, metrics: Sequence[str] | None = None, across: Sequence[str] = ACROSS) -> str:
    """A line for each method, a column for each metric that fits beside those before it; arguments as `tabulate`'s.

    The best of a column has a *. What did not fit is named beneath.
    """
    return "\n".join(_text(table) for table in tabulate(rows, metrics=metrics, across=across))


def _text(table: Table) -> str:
    names = [_wrapped(label, LABEL) for label in table.labels]
    columns = [(["method"], names, str.ljust)]
    free = WIDTH - max(map(len, ["method", *(line for name in names for line in name)]))
    shown = 0
    for number, heading in enumerate(table.headings):
        texts = [line[number].text + ("*" if line[number].best else " ") for line in table.cells]
        width = max([*map(len, texts), *map(len, heading.split())])
        if shown and free < width + len(GAP):
            break
        free, shown = free - width - len(GAP), shown + 1
        columns.append((_wrapped(heading, width), [[text] for text in texts], str.rjust))
    lines = [*_row([head for head, _, _ in columns], columns, bottom=True), ""]
    for i in range(len(names)):
        lines += _row([cells[i] for _, cells, _ in columns], columns)
    left = table.headings[shown:]
    notes = [units_line(table)] if table.units else []
    notes += [f"on the page too: {'; '.join(left)}"] if left else []
    return "\n".join([table.title, *lines, "", *(part for note in notes for part in _wrapped(note, WIDTH)), ""])


def _row(cells: list[list[str]], columns: list, *, bottom: bool = False) -> list[str]:
    """The lines of a row of the table, whose cells are [column][line]."""
    height = max(map(len, cells))
    lines = []
    for i in range(height):
        parts = []
        for cell, (head, below, align) in zip(cells, columns, strict=True):
            width = max(len(line) for part in (head, *below) for line in part)
            at = i - (height - len(cell) if bottom else 0)
            parts.append(align(cell[at] if 0 <= at < len(cell) else "", width))
        lines.append(GAP.join(parts).rstrip())
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) or [""]
