"""Matplotlib figures as SVG that lives inside a page: its text is text, its colours are the page's."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any
from xml.etree import ElementTree

from matplotlib.figure import Figure

from pathprune.report.theme import COLORS, styled

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_VARIABLES = {light: f"var(--{name})" for name, (light, _) in COLORS.items()}
_COLOR = re.compile("|".join(_VARIABLES), re.IGNORECASE)
_POINTS_PER_PIXEL = 72 / 96


def inline_svg(figure: Figure, *, name: str, title: str, alt: str) -> str:
    """An `<svg>` element for a page: scales with its box, described by `title` and `alt`, its ids begin with `name`."""
    for prefix, namespace in (("", _SVG), ("xlink", _XLINK)):
        ElementTree.register_namespace(prefix, namespace)
    root = ElementTree.fromstring(svg_text(figure))
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's style element and background would be the whole page's
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style") or child.get("id") == "patch_1":
                parent.remove(child)
    for element in root.iter():
        _localise(element, name)
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


def svg_text(figure: Figure) -> str:
    """The figure as an SVG file, in the light scheme's colours."""
    return _saved(figure, format="svg", metadata={"Date": None, "Creator": None}).decode("utf-8")


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, in the light scheme's colours."""
    return _saved(figure, format="png", dpi=160)


def _saved(figure: Figure, **how: Any) -> bytes:
    stream = io.BytesIO()
    with styled(), warnings.catch_warnings():
        # of characters that matplotlib's own font lacks; a reader's font has them
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(stream, **how)
    return stream.getvalue()


def _localise(element: ElementTree.Element, name: str) -> None:
    """Make, in place, an element's ids and colours those of the page."""
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == f"{{{_XLINK}}}href" and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        else:
            own = value.replace("url(#", f"url(#{name}-")
            element.set(key, _COLOR.sub(lambda found: _VARIABLES[found[0].lower()], own))
    # presentation attributes know no variables, style declarations do
    for key in ("fill", "stroke"):
        if element.get(key, "").startswith("var("):
            element.set("style", f"{element.get('style', '')}; {key}: {element.attrib.pop(key)}".removeprefix("; "))
