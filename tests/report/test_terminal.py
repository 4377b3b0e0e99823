"""Tables on a terminal: 80 columns, no Markdown, and nothing dropped without a word."""

from pathlib import Path

import pytest

from dforce.report.rows import read_results
from dforce.report.table import tabulate
from dforce.report.terminal import WIDTH, terminal_table

RESULTS = sorted((Path(__file__).resolve().parents[2] / "docs" / "results").glob("*.json"))


@pytest.mark.parametrize("file", RESULTS, ids=[file.stem for file in RESULTS])
@pytest.mark.quick(12)
def test_published_tables_fit_a_terminal(file: Path) -> None:
    rows = read_results(file).rows
    text = terminal_table(rows)
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH and "**" not in text
    assert not any(line.startswith(("| ", "|-")) for line in lines)
    words = " ".join(text.split())
    for table in tabulate(rows):
        first = [line[0].text + ("*" if line[0].best else "") for line in table.cells]
        assert all(" ".join(part.split()) in words for part in first)
        metrics = {heading.split(",")[0].split(" (")[0] for heading in table.headings}
        assert all(metric.split()[0] in words for metric in metrics)
