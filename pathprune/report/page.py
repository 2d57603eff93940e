"""A report page as data: sections of typed parts, which pure functions make from results and `render` turns into HTML.

Text may mark `code` with backticks; nothing else in it is markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from matplotlib.figure import Figure as Drawing

Tone = Literal["", "good", "bad", "muted"]


@dataclass(frozen=True)
class Prose:
    """A paragraph; muted for a note."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Cell:
    """A table's cell: a value, a note beside it (its interval), and a bar under it as wide as `share` of the cell."""

    text: str
    note: str = ""
    tone: Tone = ""
    share: float | None = None


@dataclass(frozen=True)
class Column:
    """A column's heading; numbers go to the right."""

    heading: str
    is_number: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of cells under a caption; the first cell of a row is its heading. `groups` start before the given rows."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell | str]]
    group_starts: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Figure:
    """Panels that stand side by side where there is room. `name` is that of its files; `alt` says what is to be seen.

    A panel wider than its box scrolls in it; one of up to 3.5 inches fits a phone.
    """

    name: str
    title: str
    alt: str
    panels: Sequence[Drawing]
    caption: str = ""
    keep_size: bool = False  # scroll rather than shrink where the box is narrower: for pictures full of small text


@dataclass(frozen=True)
class Picture:
    """A raster picture with its caption."""

    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures in a row that wraps."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Code:
    """Text as it is in a file."""

    text: str


@dataclass(frozen=True)
class Details:
    """Parts behind a line that opens them; print shows them."""

    summary: str
    parts: Sequence[Prose | Table | Figure | Gallery | Code]


Part: TypeAlias = Prose | Table | Figure | Gallery | Code | Details


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Fact:
    """A number that the page opens with."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report: what it is of, its verdict in words, the numbers behind that, and the sections."""

    title: str
    subtitle: str
    headline: Sequence[str]
    facts: Sequence[Fact] = ()
    sections: Sequence[Section] = ()


def figures(page: Page) -> list[Figure]:
    """Every figure of a page, in order."""
    parts = [part for section in page.sections for part in section.parts]
    opened = [inner for part in parts for inner in (part.parts if isinstance(part, Details) else [part])]
    return [part for part in opened if isinstance(part, Figure)]
