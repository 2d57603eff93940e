"""What timm's factories make, with their errors in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def made(kind: str, name: str, factory: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """What one of timm's factories makes; raises `ValueError` in one line where it does not know the name."""
    try:
        return factory(*arguments, **settings)
    except (ValueError, AssertionError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"timm cannot make the {kind} '{name}': {error or type(error).__name__}") from error
