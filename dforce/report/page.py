"""The frame of a run's page: style sheet and the pieces of HTML. Everything that came from a file is escaped here."""

import re
from collections.abc import Iterable, Sequence
from html import escape

from dforce.report.rows import Row
from dforce.report.table import DIFFERENCE, Table, digits_for, line_key, line_labels, number, units_line

CSS = """
:root { --ink: #1f2733; --muted: #566175; --line: #e3e7ee; --paper: #ffffff; --ground: #f6f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 20px 72px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 36px 0 12px; }
h3 { font-size: 16px; margin: 24px 0 8px; }
header { display: flex; align-items: center; gap: 14px; flex-wrap: wrap; }
.status { font-size: 14px; font-weight: 600; padding: 3px 12px; border-radius: 999px; background: #e6eaf0; }
.status.done { background: #d9f0e6; color: #00543d; }
.status.failed, .status.stopped { background: #fbe3d6; color: #8a3600; }
.status.running { background: #dcecf7; color: #004c78; }
.lead { font-size: 19px; line-height: 1.45; margin: 16px 0 20px; overflow-wrap: anywhere; }
.facts, .small { color: var(--muted); margin: 8px 2px 0; font-size: 14px; }
pre { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: 10px 0;
  font: 14px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.note { background: #fff6e5; border: 1px solid #f2dcae; border-radius: 8px; padding: 10px 14px; margin: 12px 0;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; background: var(--paper); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
th, td { padding: 8px 12px; text-align: right; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--muted); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; color: var(--ink); min-width: 110px; }
tr:last-child td { border-bottom: 0; }
td b, td span { white-space: nowrap; }
td span { color: var(--muted); }
.media { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px; align-items: start;
  grid-auto-flow: dense; }
figure { margin: 0 0 18px; background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 12px; }
.media figure { margin: 0; }
figure.wide { grid-column: 1 / -1; }
figure img, figure video { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figure video { min-width: min(100%, 480px); }
.result > figure img, .result > figure video { max-height: 640px; }
.result > figure video { image-rendering: pixelated; }
figure .fine { image-rendering: pixelated; width: 480px; }
figcaption { color: var(--muted); font-size: 15px; padding-top: 8px; }
.sparks { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 14px; margin: 12px 0; }
.spark { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px;
  font-size: 14px; }
.spark div { display: flex; justify-content: space-between; gap: 8px; }
.spark .name { overflow-wrap: anywhere; }
.spark b { font-variant-numeric: tabular-nums; }
.spark svg { display: block; width: 100%; height: 44px; margin: 6px 0 2px; }
.spark .range { color: var(--muted); }
details { margin: 10px 0; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 760px) { .media { grid-template-columns: minmax(0, 1fr); } .lead { font-size: 17px; } }
@media print { body { background: #fff; } figure, .spark, tr { break-inside: avoid; } }
"""


def document(title: str, parts: Sequence[str], *, refresh: int | None = None) -> str:
    """A whole page of already safe parts. refresh: seconds after which a browser reads it again."""
    again = f'<meta http-equiv="refresh" content="{int(refresh)}">' if refresh else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{again}'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )


def brief_table(table: Table, *, named: bool) -> str:
    """A table of few metrics, under its title where it has siblings, and what its cells mean."""
    lines = []
    for label, cells in zip(table.labels, table.cells, strict=True):
        inner = "".join(f"<td>{_cell(cell.text, cell.best)}</td>" for cell in cells)
        lines.append(f"<tr><td>{escape(label)}</td>{inner}</tr>")
    title = f"<h3>{escape(table.title)}</h3>" if named else ""
    headings = [re.sub(" ([↑↓])", "\u00a0\\1", heading).replace("_", " ") for heading in table.headings]
    return title + _grid(["method", *headings], lines) + _legend(table)


def _legend(table: Table) -> str:
    """What brackets, arrows and bold mean, as far as the table has them; the units."""
    cells = [cell for line in table.cells for cell in line if cell.row is not None]
    said = ["in brackets: 95% interval"] if any("[" in cell.text for cell in cells) else []
    bold = [cell.row["metric"] for cell in cells if cell.best and cell.row is not None]
    if bold:
        apart = all(metric.endswith(DIFFERENCE) for metric in bold)
        said.append(f"bold: {'the interval leaves 0 out' if apart else 'clearly the best of its column'}")
    said += [units_line(table).replace("_", " ")] if table.units else []
    return f'<p class="small">{escape(" · ".join(said))}</p>' if said else ""


def full_table(rows: Sequence[Row]) -> str:
    """Every row on a line of its own."""
    labels, lines = line_labels(rows), []
    for row in rows:
        digits = digits_for([row])
        starts = row["variant"].get("starts")
        interval = "" if row["low"] is None else f"[{number(row['low'], digits)}, {number(row['high'], digits)}]"
        cells = [f"{row['task']}: {labels[line_key(row)]}", row["metric"] + (f", {starts} starts" if starts else ""),
                 number(row["value"], digits), interval, str(row["n"]), row["unit"]]
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return _grid(["task and method", "metric", "value", "95% interval", "n", "unit"], lines)


def _grid(headings: Sequence[str], lines: Iterable[str]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    return (f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>')


def _cell(text: str, best: bool) -> str:
    """The value in the colour of ink, its interval muted."""
    value, _, rest = text.partition(" ")
    strong = f"<b>{escape(value)}</b>" if best else escape(value)
    return f"{strong} <span>{escape(rest)}</span>" if rest else strong


def sparkline(name: str, points: Sequence[tuple[float, float]]) -> str:
    """One metric as a small line, its last value and its range. points: (step, value), finite, at least one."""
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = min(values), max(values)
    wide, tall = max(steps) - min(steps) or 1.0, high - low or 1.0

    def place(step: float, value: float) -> str:
        return f"{2 + 216 * (step - min(steps)) / wide:.1f},{40 - 36 * (value - low) / tall:.1f}"

    kept = points[:: max(len(points) // 200, 1)]
    line = " ".join(place(*point) for point in [*kept, points[-1]])
    return (
        f'<div class="spark"><div><span class="name">{escape(name)}</span><b>{values[-1]:.3g}</b></div>'
        '<svg viewBox="0 0 220 44" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline points="{line}" fill="none" stroke="#0072b2" stroke-width="1.6"'
        ' vector-effect="non-scaling-stroke"/></svg>'
        f'<div class="range"><span>{low:.3g} … {high:.3g}</span><span>step {steps[-1]:g}</span></div></div>'
    )


def folded(title: str, inner: str) -> str:
    """Safe HTML that opens on a click; nothing where there is none."""
    return f"<details><summary>{escape(title)}</summary>{inner}</details>" if inner.strip() else ""


def block(text: str) -> str:
    """Text as it is; nothing where there is none."""
    return f"<pre>{escape(text.strip())}</pre>" if text.strip() else ""
