"""Artifacts: stored results, each with the inputs that determine its content and the codec of its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pathprune.keys import key_of

T = TypeVar("T")


@dataclass(frozen=True)
class Codec(Generic[T]):
    """Functions that write a value to a file or folder, and read it back.

    `save` takes what the stage computes, `load` returns what other stages read: a model may be saved and a path read.
    """

    save: Callable[[Any, Path], object]
    load: Callable[[Path], T]


@dataclass(frozen=True)
class Artifact(Generic[T]):
    """One stored result: its path within the run folder, the key of its inputs, and its codec."""

    name: str
    key: str
    codec: Codec[T]


@dataclass(frozen=True)
class ArtifactKind(Generic[T]):
    """Declaration of a stored result, written once by the stage that computes it.

    `path` is a format string such as `scores/{}.safetensors`. `inputs` names everything that changes the content.
    """

    path: str
    inputs: tuple[str, ...]
    codec: Codec[T]

    def of(self, *place: object, **inputs: Any) -> Artifact[T]:
        """Return the artifact at `place` (the values for the braces of `path`) that is computed from `inputs`.

        Raises `TypeError` unless exactly the declared inputs are given.
        """
        if set(inputs) != set(self.inputs):
            raise TypeError(f"artifact {self.path} has the inputs {sorted(self.inputs)}, got {sorted(inputs)}")
        return Artifact(self.path.format(*place), key_of(**inputs), self.codec)


def save_json(content: Any, file: Path) -> None:
    """Write plain data as indented JSON."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_json(file: Path) -> Any:
    """Read plain data from a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


JSON: Codec[Any] = Codec(save_json, load_json)


def json_codec(to_json: Callable[[T], Any], from_json: Callable[[Any], T]) -> Codec[T]:
    """Return the codec of a type that converts to and from plain data."""
    return Codec(lambda value, file: save_json(to_json(value), file), lambda file: from_json(load_json(file)))
