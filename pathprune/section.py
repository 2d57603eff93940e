"""What the sections of a recipe have in common; each lives beside the code that it configures."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """Frozen, plain data that knows no other keys than its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def as_tuple(value: Any) -> Any:
    """A value that may be written alone, where several are allowed."""
    return value if isinstance(value, list | tuple) else (value,)


AsTuple = BeforeValidator(as_tuple)


def as_word(value: Any) -> Any:
    """YAML reads a bare `no` as False."""
    return "no" if value is False else value


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values; raises `ValueError` if one of them is there twice."""
    repeated = [value for place, value in enumerate(values) if value in values[:place]]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is there twice; each makes a variant of its own")
    return values
