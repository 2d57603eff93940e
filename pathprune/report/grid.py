"""A grid of shaded cells with a number in each: matrices of classes, criteria and blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pathprune.report.theme import ACCENT, BAD, INK, STRONGEST_SHADE, panel, styled

_CELL = (0.44, 0.26)  # inches


@styled()
def shaded_grid(
    shades: NDArray[np.float64],
    labels: Sequence[Sequence[str]],
    *,
    row_names: Sequence[str],
    column_names: Sequence[str],
    x_label: str = "",
    title: str = "",
) -> Figure:
    """Cells `[rows, columns]` shaded from −1 (red) over 0 (plain) to 1 (blue), each with its label.

    Column names stand upright unless they are ticks of an axis that `x_label` names.
    """
    rows, columns = shades.shape
    upright = 0.0 if x_label else 0.075 * max(map(len, column_names))
    width = 0.5 + 0.075 * max(map(len, row_names)) + _CELL[0] * columns
    figure = panel(max(width, 3.2 if title else 0), 0.6 + _CELL[1] * rows + upright + (0.25 if title else 0))
    axes = figure.subplots()
    for (row, column), shade in np.ndenumerate(shades):
        axes.add_patch(
            Rectangle(
                (column - 0.47, row - 0.47),
                0.94,
                0.94,
                facecolor=ACCENT if shade >= 0 else BAD,
                alpha=STRONGEST_SHADE * min(abs(float(shade)), 1.0),
                linewidth=0,
            )
        )
        axes.text(column, row, labels[row][column], ha="center", va="center", fontsize=8, color=INK)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xticks(range(columns), column_names, rotation=0 if x_label else 90)
    axes.set_yticks(range(rows), row_names)
    axes.set_xlabel(x_label)
    figure.suptitle(title, x=0.01, horizontalalignment="left")  # in sight before a phone scrolls
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure
