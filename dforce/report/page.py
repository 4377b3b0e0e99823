"""The frame of a run's page: style sheet and the pieces of HTML. Everything that came from a file is escaped here."""

from collections.abc import Sequence
from html import escape

CSS = """
:root { --ink: #1f2733; --muted: #5c677b; --line: #e3e7ee; --paper: #ffffff; --ground: #f6f7f9; --blue: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 72px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 12px; }
h3 { font-size: 15px; margin: 20px 0 8px; }
header { display: flex; align-items: center; gap: 14px; flex-wrap: wrap; }
.status { font-size: 13px; font-weight: 600; padding: 3px 12px; border-radius: 999px; background: #e6eaf0; }
.status.done { background: #d9f0e6; color: #00543d; }
.status.failed { background: #fbe3d6; color: #8a3600; }
.status.running { background: #dcecf7; color: #004c78; }
.facts { color: var(--muted); margin: 8px 0 0; font-size: 14px; }
pre { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; overflow: auto;
  max-height: 480px; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 10px 0; }
pre.command { font-size: 14px; }
.note { background: #fff6e5; border: 1px solid #f2dcae; border-radius: 8px; padding: 10px 14px; margin: 12px 0; }
.note.failed { background: #fdf0e8; border-color: #f0cdb7; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; background: var(--paper); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 8px 14px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--muted); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; color: var(--ink); }
tr:last-child td { border-bottom: 0; }
td b { font-weight: 700; }
td span { color: var(--muted); }
.small { color: var(--muted); font-size: 13px; margin: 8px 2px 0; }
.media { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px; align-items: start; }
figure { margin: 0; background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 12px; }
figure.wide { grid-column: 1 / -1; }
figure img, figure video { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { color: var(--muted); font-size: 14px; padding-top: 8px; }
.sparks { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 14px; }
.spark { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px;
  font-size: 13px; }
.spark div { display: flex; justify-content: space-between; gap: 8px; }
.spark .name { overflow-wrap: anywhere; }
.spark b { font-variant-numeric: tabular-nums; }
.spark svg { display: block; width: 100%; height: 44px; margin: 6px 0 2px; }
.spark .range { color: var(--muted); }
details { margin: 10px 0; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 760px) { .media { grid-template-columns: 1fr; } }
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
        f'<div class="spark"><div><span class="name">{escape(name)}</span><b>{values[-1]:.4g}</b></div>'
        '<svg viewBox="0 0 220 44" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline points="{line}" fill="none" stroke="#0072b2" stroke-width="1.6"'
        ' vector-effect="non-scaling-stroke"/></svg>'
        f'<div class="range"><span>{low:.4g} … {high:.4g}</span><span>step {steps[-1]:g}</span></div></div>'
    )


def folded(title: str, text: str) -> str:
    """A block of text that opens on a click."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>" if text.strip() else ""
