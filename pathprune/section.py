"""Base class and value conversions of the sections of a recipe."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


class Section(BaseModel):
    """Frozen settings as plain data; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AsTuple:
    """Annotation of a tuple, or of a tuple or None, that also accepts a single item."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(as_tuple, handler(source))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        json_schema = handler(schema)
        array, *null = json_schema.get("anyOf", [json_schema])
        return {"anyOf": [array["items"], array, *null]}


def as_tuple(value: Any) -> Any:
    """Return lists, tuples and None as they are, and any other value as a tuple of one."""
    return value if isinstance(value, list | tuple | None) else (value,)


def as_word(value: Any) -> Any:
    """Return "no" for False: YAML reads a bare `no` as False."""
    return "no" if value is False else value


def refuse_duplicates(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values; raise `ValueError` if one of them occurs twice."""
    duplicates = [value for place, value in enumerate(values) if value in values[:place]]
    if duplicates:
        raise ValueError(f"{duplicates[0]!r} is given twice; remove one of them")
    return values
