"""Colours and fonts of pages and figures, in a light and a dark scheme.

Figures are drawn in the colours of the light scheme. In a page, every such colour is replaced by the CSS variable of
its name, so that the figure follows the page's scheme (see `report.svg`). Shades of a colour are therefore drawn with
alpha, which adapts to the background.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from matplotlib import rc_context
from matplotlib.figure import Figure

Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")

# name -> (light, dark). Contrast with the page is at least 4.5 for text colours and 3 for the others. The series
# colours are distinguishable with any colour vision; series also differ in their markers.
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
_MARKERS = "osD^vPX*"
_LINE_STYLES = ("-", "--", ":")
INK, MUTED, FAINT, PAGE = (COLORS[name][0] for name in ("ink", "muted", "faint", "page"))
ACCENT, BAD = (COLORS[name][0] for name in ("accent", "bad"))

STRONGEST_SHADE = 0.45  # largest alpha of a shade on which text in `ink` has a contrast of 4.5 in both schemes

_SETTINGS = {
    "svg.fonttype": "none",  # keep text as text: selectable, in the reader's font
    "svg.hashsalt": "pathprune",  # equal figures give equal files
    "text.parse_math": False,  # a class name may contain $
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


@dataclass(frozen=True)
class SeriesStyle:
    """Colour, marker and line style of one series in a plot."""

    color: str
    marker: str
    linestyle: str


def series_style(index: int) -> SeriesStyle:
    """Return the style of a plot's series number `index`; series that share a colour differ in marker and line."""
    cycle, place = divmod(index, len(SERIES))
    marker = _MARKERS[(index + 3 * cycle) % len(_MARKERS)]
    return SeriesStyle(SERIES[place], marker, _LINE_STYLES[cycle % len(_LINE_STYLES)])


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw and save figures in the package's style; usable with `with` and as a decorator."""
    with rc_context(_SETTINGS):  # type: ignore[arg-type]
        yield


def new_panel(width: float = 3.5, height: float = 2.9) -> Figure:
    """Return an empty figure of the given inches; one of width 3.5 fits a phone, three fit a wide screen."""
    return Figure(figsize=(width, height), layout="constrained")


def format_css_variables(scheme: Scheme) -> str:
    """Format the colours of a scheme as CSS declarations."""
    return " ".join(f"--{name}: {colors[SCHEMES.index(scheme)]};" for name, colors in COLORS.items())
