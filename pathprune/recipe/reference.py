"""Reference of all recipe keys: a commented recipe, rendered from the JSON schema."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from pathprune.recipe.schema import recipe_schema
from pathprune.recipe.shipped import SCHEMA_COMMENT

_WIDTH = 113  # nested, commented out sections are indented by up to seven columns
_HEADER = f"""\
{SCHEMA_COMMENT}
# Every key of a recipe with its meaning, default and allowed values; copy what you need.
# Generated from the descriptions in the code.
"""
_EXTENDS = {"recover": "train"}  # RecoverConfig is a TrainConfig: its reference leaves out the keys that are alike

Schema = Mapping[str, Any]


def render_reference() -> str:
    """Return a recipe with every key at its default, commented with meanings, allowed values and options."""
    schema = recipe_schema()
    reference = _Reference(schema["$defs"])
    lines = []
    for key, value in schema["properties"].items():
        lines += ["", *reference.render_key(key, {**value, "default": "reference"} if key == "name" else value)]
        if key in _EXTENDS:
            lines += reference.render_extension(schema["properties"], key, base=_EXTENDS[key])
    return _HEADER + "\n".join(lines) + "\n"


class _Reference:
    """Renderer of keys; `definitions` are the parts of the JSON schema that other parts refer to."""

    def __init__(self, definitions: Schema) -> None:
        self._definitions = definitions

    def render_key(self, key: str, schema: Schema) -> Iterator[str]:
        """Yield the lines of a key: description, default and allowed values, then the keys of its section."""
        section = self._resolve(schema)
        yield from _comment(schema.get("description", section.get("description", "")))
        if "properties" in section and "default" not in schema:
            yield f"{key}:"
            yield from textwrap.indent("\n".join(self._render_keys(section)), "  ").split("\n")
            return
        options = list(self._flatten(schema))
        yield from self._render_steps(options)
        value = f" {_to_yaml(schema['default'])}" if "default" in schema else ""
        yield f"{key}:{value} # {self._describe_values(schema)}"
        if key not in _EXTENDS and not schema.get("default"):
            for option in options:
                yield from (f"#  {line}" for line in self._render_keys(option))

    def render_extension(self, sections: Schema, key: str, *, base: str) -> Iterator[str]:
        """Yield, commented out, the keys of an optional section that its base lacks or has with another default."""
        (section,) = (option for option in self._flatten(sections[key]) if "properties" in option)
        known = self._resolve(sections[base])["properties"]
        for name, schema in section["properties"].items():
            if name not in known or schema["default"] != known[name]["default"]:
                yield from (f"#  {line}" for line in self.render_key(name, schema))
        yield f"#  # All other keys are those of `{base}`, with the same defaults."

    def _render_keys(self, section: Schema) -> Iterator[str]:
        for key, schema in section.get("properties", {}).items():
            yield from self.render_key(key, schema)

    def _render_steps(self, options: Sequence[Schema]) -> Iterator[str]:
        """Yield a comment with the name, the summary and the options of each criterion or compensation."""
        steps = {step["properties"]["name"]["const"]: step for step in options if _is_step(step)}
        for name, step in steps.items():
            yield from _comment(f"{name}: {step['description']}", indent=2)
            for option, schema in step["properties"].items():
                if option == "name":
                    continue
                default = f", default {_to_yaml(schema['default'])}" if "default" in schema else ""
                text = f"{option} ({self._describe_values(schema)}{default}): {schema.get('description', '')}"
                yield from _comment(text, indent=6)

    def _flatten(self, schema: Schema) -> Iterator[Schema]:
        """Yield the alternatives of a schema."""
        resolved = self._resolve(schema)
        if "anyOf" in resolved:
            for option in resolved["anyOf"]:
                yield from self._flatten(option)
        else:
            yield resolved

    def _resolve(self, schema: Schema) -> Schema:
        """Return the definition that a schema refers to, or the schema itself."""
        reference = schema.get("$ref")
        return self._definitions[reference.rpartition("/")[2]] if reference else schema

    def _describe_values(self, schema: Schema) -> str:
        """Return the allowed values, such as `integer ≥ 1 | null`."""
        resolved = self._resolve(schema)
        if "$ref" in schema and any(map(_is_step, resolved.get("anyOf", ()))):
            return str(schema["$ref"]).rpartition("/")[2].lower()  # criterion or compensation
        if "anyOf" in resolved:
            return " | ".join(dict.fromkeys(self._describe_values(option) for option in resolved["anyOf"]))
        if "enum" in resolved or "const" in resolved:
            return " | ".join(map(_to_yaml, resolved.get("enum", [resolved.get("const")])))
        if resolved["type"] == "array":
            item = self._describe_values(resolved["items"])
            return f"[{', '.join([item] * resolved['maxItems'] if 'maxItems' in resolved else [item, '…'])}]"
        kind = str(resolved["type"])
        words = {"boolean": "true | false", "string": "text", "object": "mapping"}
        return _describe_range(words.get(kind, kind), resolved)


def _is_step(schema: Schema) -> bool:
    """Return True for the mapping of one criterion or compensation."""
    return "const" in schema.get("properties", {}).get("name", {})


def _describe_range(word: str, schema: Schema) -> str:
    """Return `word` with the bounds of a number: `integer ≥ 1`, `0 ≤ number < 1`."""
    lower = [(schema[key], sign) for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">")) if key in schema]
    upper = [(schema[key], sign) for key, sign in (("maximum", "≤"), ("exclusiveMaximum", "<")) if key in schema]
    if lower and upper:
        ((low, sign),) = lower
        word, lower = f"{low} {'≤' if sign == '≥' else '<'} {word}", []
    return " ".join([word, *(f"{sign} {bound:g}" for bound, sign in [*lower, *upper])])


def _comment(text: str, *, indent: int = 0) -> Sequence[str]:
    """Return text as comment lines; indented text hangs by two columns."""
    start = "# " + " " * indent
    hanging = start + (" " * 2 if indent else "")
    words = " ".join(text.split())
    return textwrap.wrap(words, _WIDTH, initial_indent=start, subsequent_indent=hanging, break_on_hyphens=False)


def _to_yaml(value: Any) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6)
    return text.strip().removeprefix("[").removesuffix("]")
