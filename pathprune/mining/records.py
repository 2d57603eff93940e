"""Descriptions that the records of a mining run carry on disk.

Class statistics (safetensors) and path sets (parquet) carry a JSON description in their file's metadata, under the key
`pathprune`: schema version, site names, class names and settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SCHEMA_VERSION = 1

Settings = Mapping[str, str | int]
"""The settings that paths were mined with, as plain data."""


class Record(Protocol):
    """Data of one mining run, with the sites, classes and settings of that run."""

    @property
    def site_names(self) -> tuple[str, ...]: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def settings(self) -> Settings: ...


@dataclass(frozen=True)
class Description:
    """Sites, classes and settings of a mining run."""

    site_names: tuple[str, ...]
    class_names: tuple[str, ...]
    settings: Settings


def check_same_mining(first: Record, second: Record) -> None:
    """Check that two records share site names, class names and settings. Raises `ValueError` otherwise."""
    for name in ("site_names", "class_names", "settings"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            raise ValueError(f"cannot join records of different {name}: {one} and {other}")


def write_description(record: Record) -> str:
    """Return the record's description as JSON."""
    names = {"site_names": record.site_names, "class_names": record.class_names}
    return json.dumps({"schema": SCHEMA_VERSION, **names, "settings": dict(record.settings)})


def read_description(text: str | None, file: Path | str, expected: str) -> Description:
    """Return the description that `write_description` wrote.

    `text` is the metadata entry of `file`, None where the entry is missing; `expected` names the kind of record in
    errors. Raises `ValueError` for a missing entry and for another schema version.
    """
    if text is None:
        raise ValueError(f"{file} does not hold {expected}: its metadata has no 'pathprune' entry")
    content = json.loads(text)
    if content["schema"] != SCHEMA_VERSION:
        raise ValueError(
            f"{file} holds {expected} of schema version {content['schema']}, but this pathprune reads version "
            f"{SCHEMA_VERSION}; mine again, or install the pathprune that wrote the file"
        )
    return Description(tuple(content["site_names"]), tuple(content["class_names"]), content["settings"])
