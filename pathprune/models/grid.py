"""The grid of patches in models that take images of any size: blocks only see the number of patches."""

from __future__ import annotations

import math

Grid = tuple[int, int]
"""Number of patches down and across."""


def check_grid(grid: Grid, *, own: Grid) -> None:
    """Raise ValueError if `find_grid` could not recover `grid`: it must be the model's own or another square."""
    if grid != own and (grid[0] != grid[1] or math.prod(grid) == math.prod(own)):
        raise ValueError(
            f"got images of {grid[0]} × {grid[1]} patches, but the model takes {own[0]} × {own[1]}; pass images of the "
            "model's size, or square images with another number of patches"
        )


def find_grid(num_patches: int, *, own: Grid) -> Grid:
    """Return the grid with this number of patches, for a grid that passed `check_grid`."""
    side = math.isqrt(num_patches)
    return own if num_patches == math.prod(own) else (side, side)
