"""A report page as data: sections of typed parts, which `report.render` turns into HTML.

In texts, backticks mark `code`. There is no other markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from matplotlib.figure import Figure as Drawing

Tone = Literal["", "good", "bad", "muted"]


@dataclass(frozen=True)
class Prose:
    """A paragraph; the tone `muted` marks a note."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a value, a note beside it such as an interval, and a bar below it.

    The bar is as wide as `share` of the cell; None for no bar.
    """

    text: str
    note: str = ""
    tone: Tone = ""
    share: float | None = None


@dataclass(frozen=True)
class Column:
    """Heading of a column; a column of numbers is aligned to the right."""

    heading: str
    is_number: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of cells under a caption; the first cell of a row is its heading.

    A rule separates groups of rows: each index in `group_starts` is the first row of a group.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell | str]]
    group_starts: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Figure:
    """Panels that stand side by side if there is room.

    `name` is the name of the figure's files. `alt` describes the figure to screen readers. A panel of at most 3.5
    inches fits a phone. A wider panel shrinks, or scrolls if `keep_size` is set.
    """

    name: str
    title: str
    alt: str
    panels: Sequence[Drawing]
    caption: str = ""
    keep_size: bool = False  # for panels with small text


@dataclass(frozen=True)
class Picture:
    """A raster picture with a caption."""

    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side, in as many rows as needed."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Code:
    """Preformatted text."""

    text: str


@dataclass(frozen=True)
class Details:
    """Parts hidden behind a line that opens them; in print they are visible."""

    summary: str
    parts: Sequence[Prose | Table | Figure | Gallery | Code]


Part: TypeAlias = Prose | Table | Figure | Gallery | Code | Details


@dataclass(frozen=True)
class Section:
    """A heading and the parts below it."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Fact:
    """A key number at the top of the page."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report: title, subtitle, conclusions in sentences, key numbers, and sections."""

    title: str
    subtitle: str
    headline: Sequence[str]
    facts: Sequence[Fact] = ()
    sections: Sequence[Section] = ()


def list_figures(page: Page) -> list[Figure]:
    """Return every figure of a page, in order."""
    parts = [part for section in page.sections for part in section.parts]
    leaves = [inner for part in parts for inner in (part.parts if isinstance(part, Details) else [part])]
    return [part for part in leaves if isinstance(part, Figure)]
