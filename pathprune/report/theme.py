"""Colours and type of pages and figures, light and dark.

Figures are drawn in the light scheme's colours, as files on their own show them. On a page every such colour is
replaced by the CSS variable of its name, so that the page's scheme decides (see `report.svg`). Shades of one colour are
therefore made with alpha, over whatever lies behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

# name -> (light, dark). Text colours have a contrast of at least 4.5 with their page, the others of at least 3; the
# series are told apart with any colour vision, and by their markers besides.
COLORS = {
    "page": ("#fdfdfe", "#14181d"),
    "raised": ("#f1f3f6", "#1e242b"),
    "ink": ("#1b1f24", "#e7eaee"),
    "muted": ("#57606b", "#a2adb9"),
    "faint": ("#d5dae0", "#38424d"),
    "accent": ("#0b5cad", "#78b7ff"),
    "good": ("#1a7043", "#58cf92"),
    "bad": ("#b42a1d", "#ff9184"),
    "series-1": ("#0b62b1", "#6cb2fe"),
    "series-2": ("#c2570b", "#ff9d57"),
    "series-3": ("#1a7f4c", "#4fcf8d"),
    "series-4": ("#8250c5", "#c59cff"),
    "series-5": ("#c02f6c", "#ff86b3"),
    "series-6": ("#0f7f8d", "#4fd0de"),
    "series-7": ("#7a6a13", "#d8c34a"),
    "series-8": ("#5c6571", "#aab4c0"),
}
SERIES = tuple(light for name, (light, _) in COLORS.items() if name.startswith("series-"))
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":")
INK, MUTED, FAINT, PAGE = (COLORS[name][0] for name in ("ink", "muted", "faint", "page"))
ACCENT, GOOD, BAD = (COLORS[name][0] for name in ("accent", "good", "bad"))

STRONGEST_SHADE = 0.45  # alpha of a shade that text in `ink` still has a contrast of 4.5 on, in either scheme

_SETTINGS = {
    "svg.fonttype": "none",  # text stays text: selectable, and in the reader's own font
    "svg.hashsalt": "pathprune",  # equal figures are equal files
    "text.parse_math": False,  # a class may be named $1
    "font.size": 9.5,
    "figure.titlesize": 10.5,
    "figure.titleweight": "bold",
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "figure.facecolor": PAGE,
    "axes.facecolor": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


@contextmanager
def styled() -> Iterator[None]:
    """While open, figures are drawn and saved in the package's style; also decorates a function that draws."""
    with rc_context(_SETTINGS):  # type: ignore[arg-type]
        yield


def panel(width: float = 3.5, height: float = 2.9) -> Figure:
    """An empty figure, in inches; one of 3.5 fits a phone, three of these a wide screen."""
    return Figure(figsize=(width, height), layout="constrained")


def css_variables(scheme: int) -> str:
    """The colours as CSS declarations: 0 light, 1 dark."""
    return " ".join(f"--{name}: {colors[scheme]};" for name, colors in COLORS.items())


def contrast(text: str, page: str) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""

    def luminance(color: str) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(text), luminance(page)))
    return (high + 0.05) / (low + 0.05)
