"""A page as one HTML file that needs nothing else, and its figures as files of their own."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pathprune.files import write_text
from pathprune.report.page import Cell, Figure, Page, figures
from pathprune.report.svg import inline_svg, png, svg_text
from pathprune.report.theme import css_variables


def write_page(page: Page, file: Path) -> None:
    """Write the page as one HTML file, and its figures to the folder `figures/` beside it."""
    write_text(file, render(page))
    save_figures(page, file.parent / "figures")


def render(page: Page) -> str:
    """The page as HTML: no script, no network, light and dark, for screens from 360 px and for paper."""
    environment = Environment(
        loader=PackageLoader("pathprune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline": _inline, "svgs": _svgs, "data_uri": _data_uri, "cell": _cell}
    environment.tests["kind"] = lambda part, name: type(part).__name__ == name
    return environment.get_template("page.html.jinja").render(
        page=page, light=Markup(css_variables(0)), dark=Markup(css_variables(1))
    )


def save_figures(page: Page, folder: Path) -> list[Path]:
    """Write every panel as `<name>.svg` and `.png` (`<name>-2` and so on for further panels); returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for figure in figures(page):
        for name, drawing in zip(_names(figure), figure.panels, strict=True):
            vector, raster = folder / f"{name}.svg", folder / f"{name}.png"
            vector.write_text(svg_text(drawing), encoding="utf-8")
            raster.write_bytes(png(drawing))
            files += [vector, raster]
    return files


def _names(figure: Figure) -> list[str]:
    return [figure.name if index == 0 else f"{figure.name}-{index + 1}" for index in range(len(figure.panels))]


def _inline(text: str) -> Markup:
    """Escape text, and set what is between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _svgs(figure: Figure) -> list[Markup]:
    return [
        Markup(inline_svg(drawing, name=name, title=figure.title, alt=figure.alt))
        for name, drawing in zip(_names(figure), figure.panels, strict=True)
    ]


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _cell(value: Cell | str) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)
