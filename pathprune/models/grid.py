"""The grid that patches lie in, for models that take images of any size: blocks see the number of patches only."""

from __future__ import annotations

import math

Grid = tuple[int, int]


def check_grid(grid: Grid, *, own: Grid) -> None:
    """Raise ValueError for a grid that `grid_of` could not tell: neither the model's own nor a square one."""
    if grid != own and (grid[0] != grid[1] or math.prod(grid) == math.prod(own)):
        raise ValueError(
            f"images of {grid[0]} × {grid[1]} patches, the model is made for {own[0]} × {own[1]}; give images of the "
            "model's size, or square ones of another"
        )


def grid_of(num_patches: int, *, own: Grid) -> Grid:
    """The grid of so many patches, which `check_grid` let through."""
    side = math.isqrt(num_patches)
    return own if num_patches == math.prod(own) else (side, side)
