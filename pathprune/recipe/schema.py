"""JSON schema of a recipe, for editors: every key, its allowed values and its description."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from pathprune.recipe.recipe import Recipe

_DIALECT = "http://json-schema.org/draft-07/schema#"  # editors know no later draft for certain


class _RecipeSchema(GenerateJsonSchema):
    """Pydantic's schema without titles and nested defaults, in words of draft 7."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        json_schema = super().model_schema(schema)
        json_schema.pop("title", None)
        return json_schema

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        factory: Any = schema.get("default_factory")
        return factory() if factory else super().get_default_value(schema)

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        json_schema = super().default_schema(schema)
        is_section = isinstance(schema.get("default"), BaseModel) and schema["schema"]["type"] != "nullable"
        if is_section:  # its keys have their own defaults
            json_schema.pop("default", None)
        return json_schema

    def tuple_schema(self, schema: core_schema.TupleSchema) -> JsonSchemaValue:
        json_schema = super().tuple_schema(schema)
        items = json_schema.pop("prefixItems", [])  # draft 2020-12
        if items:
            assert all(item == items[0] for item in items), "a recipe has tuples of one type"
            json_schema["items"] = items[0]
        return json_schema


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, with the options of every registered criterion and compensation."""
    schema = Recipe.model_json_schema(schema_generator=_RecipeSchema)
    definitions = schema["$defs"]
    _define(definitions, "Criterion", definitions["ScoreConfig"]["properties"]["criteria"])
    _define(definitions, "Compensation", schema["properties"]["compensation"])
    return {"$schema": _DIALECT, **schema}


def _define(definitions: dict[str, Any], name: str, value: dict[str, Any]) -> None:
    """Move the schema that `value` has twice, for one item and for a list, to the definitions (in place)."""
    item, array = value["anyOf"]
    definitions[name] = item
    reference = {"$ref": f"#/$defs/{name}"}
    value["anyOf"] = [reference, {**array, "items": reference}]
