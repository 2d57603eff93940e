"""How the records of a mining run describe themselves on disk.

Every record carries a JSON description (schema version, site names, class names, settings) under the key `pathprune` of
its metadata: that of the safetensors file of class statistics, and that of the parquet file of paths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

SCHEMA_VERSION = 1

Settings = Mapping[str, str | int]


class Record(Protocol):
    """What every record says of itself."""

    @property
    def site_names(self) -> tuple[str, ...]: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def settings(self) -> Settings: ...


def check_same_mining(first: Record, second: Record) -> None:
    """Refuse to join records of different models, classes or settings."""
    for name in ("site_names", "class_names", "settings"):
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            raise ValueError(f"cannot join records of different {name}: {ours} and {theirs}")


def description(record: Record) -> str:
    """The record's description as JSON."""
    names = {"site_names": record.site_names, "class_names": record.class_names}
    return json.dumps({"schema": SCHEMA_VERSION, **names, "settings": dict(record.settings)})


def described(text: str | None, file: Path | str, expected: str) -> dict[str, Any]:
    """The description read back; raises `ValueError` where there is none, or one of another schema version."""
    if text is None:
        raise ValueError(f"{file} does not hold {expected}: its metadata has no 'pathprune' entry")
    content: dict[str, Any] = json.loads(text)
    if content["schema"] != SCHEMA_VERSION:
        raise ValueError(
            f"{file} holds {expected} of schema version {content['schema']}, but this pathprune reads version "
            f"{SCHEMA_VERSION}; mine again, or install the pathprune that wrote it"
        )
    return content
