"""Matplotlib figures as SVG elements of a page, with selectable text and the page's colours."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any
from xml.etree import ElementTree

from matplotlib.figure import Figure

from pathprune.report.theme import COLORS, figure_style

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_VARIABLES = {light: f"var(--{name})" for name, (light, _) in COLORS.items()}
_COLOR = re.compile("|".join(_VARIABLES), re.IGNORECASE)
_POINTS_PER_PIXEL = 72 / 96


def inline_svg(figure: Figure, *, name: str, title: str, alt: str) -> str:
    """Return the figure as an `<svg>` element that scales with its box.

    `title` and `alt` describe the figure to screen readers. `name` is the prefix of every id, so that ids are unique in
    the page.
    """
    for prefix, namespace in (("", _SVG), ("xlink", _XLINK)):
        ElementTree.register_namespace(prefix, namespace)
    root = ElementTree.fromstring(to_svg(figure))
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's style element would apply to the whole page; the page has a background of its own
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style") or child.get("id") == "patch_1":
                parent.remove(child)
    for element in root.iter():
        _adapt_element(element, name)
    width = float(root.attrib.pop("width").removesuffix("pt")) / _POINTS_PER_PIXEL
    root.attrib.pop("height")
    root.attrib |= {
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-desc",
        "style": f"width: {width:.0f}px",
    }
    for tag, text in (("desc", alt), ("title", title)):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(0, element)
    return ElementTree.tostring(root, encoding="unicode")


def to_svg(figure: Figure) -> str:
    """Return the figure as the text of an SVG file, in the colours of the light scheme."""
    return _save(figure, format="svg", metadata={"Date": None, "Creator": None}).decode("utf-8")


def to_png(figure: Figure) -> bytes:
    """Return the figure as a PNG file, in the colours of the light scheme."""
    return _save(figure, format="png", dpi=160)


def _save(figure: Figure, **options: Any) -> bytes:
    stream = io.BytesIO()
    with figure_style(), warnings.catch_warnings():
        # matplotlib's font may lack a character of a class name; the reader's font may have it
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(stream, **options)
    return stream.getvalue()


def _adapt_element(element: ElementTree.Element, name: str) -> None:
    """Prefix the element's ids with `name` and replace its colours by CSS variables, in place."""
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == f"{{{_XLINK}}}href" and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        else:
            prefixed = value.replace("url(#", f"url(#{name}-")
            element.set(key, _COLOR.sub(lambda match: _VARIABLES[match[0].lower()], prefixed))
    # CSS variables work in style declarations but not in presentation attributes
    for key in ("fill", "stroke"):
        if element.get(key, "").startswith("var("):
            element.set("style", f"{element.get('style', '')}; {key}: {element.attrib.pop(key)}".removeprefix("; "))
