"""Calls of timm's factories, with errors that name the unknown value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def build_with_timm(kind: str, name: str, factory: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Call a factory of timm; raise `ValueError` with `kind` and `name` if the factory rejects its arguments."""
    try:
        return factory(*arguments, **settings)
    except (ValueError, AssertionError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"timm cannot build the {kind} '{name}': {error or type(error).__name__}") from error
