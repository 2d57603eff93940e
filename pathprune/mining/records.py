"""How the records of a mining run describe themselves on disk, and how they are written: whole or not at all.

Every record carries a JSON description (schema version, site names, class names, settings) under the key `pathprune` of
its metadata: that of the safetensors file of class statistics, and that of the parquet file of paths.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A path to write to that takes `file`'s place, on the disk too, when all went well, and is removed otherwise."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        yield part
        _flush(part)
        part.replace(file)
        _flush(file.parent)
    finally:
        part.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have what the system holds of a file or folder written to the disk, so that a power cut does not undo it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
