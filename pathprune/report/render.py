"""Writer of a page: one self-contained HTML file, and the figures as separate files."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pathprune.files import write_text
from pathprune.report.page import Cell, Figure, Page, list_figures
from pathprune.report.svg import inline_svg, to_png, to_svg
from pathprune.report.theme import format_css_variables


def write_page(page: Page, file: Path) -> None:
    """Write the page as one HTML file, and its figures to the folder `figures/` beside it."""
    write_text(file, render(page))
    save_figures(page, file.parent / "figures")


def render(page: Page) -> str:
    """Return the page as HTML without scripts or network access, for screens from 360 px and for print.

    The colour scheme, light or dark, follows the reader's settings.
    """
    environment = Environment(
        loader=PackageLoader("pathprune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "inline": _format_inline,
        "svgs": _inline_panels,
        "data_uri": _to_data_uri,
        "cell": _to_cell,
    }
    environment.tests["kind"] = lambda part, name: type(part).__name__ == name
    return environment.get_template("page.html.jinja").render(
        page=page, light=Markup(format_css_variables("light")), dark=Markup(format_css_variables("dark"))
    )


def save_figures(page: Page, folder: Path) -> list[Path]:
    """Write every panel as `<name>.svg` and `<name>.png`, further panels as `<name>-2` and so on; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for figure in list_figures(page):
        for name, drawing in zip(_panel_names(figure), figure.panels, strict=True):
            vector, raster = folder / f"{name}.svg", folder / f"{name}.png"
            vector.write_text(to_svg(drawing), encoding="utf-8")
            raster.write_bytes(to_png(drawing))
            files += [vector, raster]
    return files


def _panel_names(figure: Figure) -> list[str]:
    return [figure.name if index == 0 else f"{figure.name}-{index + 1}" for index in range(len(figure.panels))]


def _format_inline(text: str) -> Markup:
    """Escape text, and mark text between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _inline_panels(figure: Figure) -> list[Markup]:
    return [
        Markup(inline_svg(drawing, name=name, title=figure.title, alt=figure.alt))
        for name, drawing in zip(_panel_names(figure), figure.panels, strict=True)
    ]


def _to_data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _to_cell(value: Cell | str) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)
