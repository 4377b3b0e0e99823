"""What every page of a run keeps to, read from its HTML as a browser would: see `check_page`."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

VOID = {"meta", "img", "br", "polyline"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []  # (tag, class) of the elements around
        self.children: list[tuple[str, str]] = []  # of main
        self.widths: list[int] = []  # columns of the tables outside of folds
        self.files: list[tuple[str, str, str | None]] = []  # (tag, source, alt)
        self.texts: dict[int, str] = {}  # number of a child of main -> its text
        self.title = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if self.open and self.open[-1][0] == "main":
            self.children.append((tag, named.get("class") or ""))
        if tag == "thead" and all(name != "details" for name, _ in self.open):
            self.widths.append(0)
        if tag == "th" and self.widths and all(name != "details" for name, _ in self.open):
            self.widths[-1] += 1
        if tag in ("img", "video"):
            self.files.append((tag, named.get("src") or "", named.get("alt")))
            self.texts[len(self.children) - 1] = self.texts.get(len(self.children) - 1, "") + "picture"
        if tag not in VOID:
            self.open.append((tag, named.get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1][0] == "title":
            self.title += data
        if any(tag == "main" for tag, _ in self.open) and data.strip():
            number = len(self.children) - 1
            self.texts[number] = self.texts.get(number, "") + data


def check_page(file: Path) -> None:
    """AssertionError unless the page begins with what came out, is not too wide, and leaves nothing empty."""
    reader = _Reader()
    reader.feed(file.read_text("utf-8"))
    folder, shown = file.parent, reader.children
    assert folder.resolve().name in reader.title, f"{file}: the title {reader.title!r} does not tell which run it is"
    assert shown[0][0] == "header" and shown[1] == ("section", "result"), f"{file}: begins with {shown[:2]}"
    assert len(reader.texts.get(1, "").split()) >= 3, f"{file}: the result says nothing"
    assert all(width <= 6 for width in reader.widths), f"{file}: tables of {reader.widths} columns"
    empty = [child for number, child in enumerate(shown) if not reader.texts.get(number, "").strip()]
    assert not empty, f"{file}: {empty} are empty"
    assert shown[-1][0] != "h2", f"{file}: a heading with nothing below"
    assert not [one for one, other in zip(shown, shown[1:], strict=False) if one[0] == other[0] == "h2"], file
    for tag, source, alt in reader.files:
        assert tag != "img" or (alt or "").strip(), f"{file}: {source} has no text in its place"
        assert source.startswith("data:") or (folder / unquote(source)).is_file(), f"{file}: {source} is not there"
