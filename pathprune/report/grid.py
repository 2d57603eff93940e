"""Grids of shaded cells with a label in each: matrices of classes, criteria and blocks."""

# R rows, C columns

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pathprune.report.theme import ACCENT, BAD, INK, STRONGEST_SHADE, figure_style, new_panel

_CELL_WIDTH, _CELL_HEIGHT = 0.44, 0.26  # inches
_CHARACTER_WIDTH = 0.075  # inches of one character of a name, on average


@figure_style()
def draw_grid(
    shades_RC: NDArray[np.float64],
    labels: Sequence[Sequence[str]],
    *,
    row_names: Sequence[str],
    column_names: Sequence[str],
    x_label: str = "",
    title: str = "",
) -> Figure:
    """Draw cells `[R, C]` shaded from −1 (red) over 0 (no shade) to 1 (blue), each with its label.

    A cell of NaN stays empty. With `x_label`, the column names are ticks of that axis. Without, the names are vertical.
    """
    num_rows, num_columns = shades_RC.shape
    names_height = 0.0 if x_label else _CHARACTER_WIDTH * max(map(len, column_names))
    width = 0.5 + _CHARACTER_WIDTH * max(map(len, row_names)) + _CELL_WIDTH * num_columns
    height = 0.6 + _CELL_HEIGHT * num_rows + names_height + (0.25 if title else 0)
    figure = new_panel(max(width, 3.2 if title else 0), height)
    axes = figure.subplots()
    for (row, column), shade in np.ndenumerate(shades_RC):
        if np.isnan(shade):
            continue
        color = ACCENT if shade >= 0 else BAD
        alpha = STRONGEST_SHADE * min(abs(float(shade)), 1.0)
        corner = (column - 0.47, row - 0.47)
        axes.add_patch(Rectangle(corner, 0.94, 0.94, facecolor=color, alpha=alpha, linewidth=0))
        axes.text(column, row, labels[row][column], ha="center", va="center", fontsize=8, color=INK)
    axes.set_xlim(-0.5, num_columns - 0.5)
    axes.set_ylim(num_rows - 0.5, -0.5)
    axes.set_xticks(range(num_columns), column_names, rotation=0 if x_label else 90)
    axes.set_yticks(range(num_rows), row_names)
    axes.set_xlabel(x_label)
    figure.suptitle(title, x=0.01, horizontalalignment="left")  # visible on a phone without scrolling
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure
