"""The run folder: every artifact's name, written atomically, with the key of the inputs it was made from.

<run folder>/
recipe.yaml                     the resolved recipe
environment.json                versions and device
keys.json                       artifact -> key of what it was made from
mined/<tokens>/stats.safetensors, paths.parquet
statistics.safetensors          activation statistics of the calibration images
scores/<criterion>.safetensors
plans/<variant>.json
evaluations/<variant>.safetensors   outcome of every evaluation image
pruned/<variant>/               checkpoints
latency.json, metrics.jsonl, retention.svg, retention.png
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pathprune.recipe import Recipe, RecipeError

T = TypeVar("T")


def key_of(**inputs: Any) -> str:
    """Short hash of plain data; equal inputs give equal keys on every machine."""
    content = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


def write_atomically(file: Path, content: str) -> None:
    """Write text so that the file is either the old one or the whole new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".tmp")
    with unfinished.open("w", encoding="utf-8") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(file)


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one recipe. `main` is true in the one process that writes."""

    path: Path
    main: bool = True

    def claim(self, recipe: Recipe, *, overwrite: bool) -> None:
        """Make the folder this recipe's own; refuse one with another recipe's results unless told to overwrite.

        Overwriting keeps what the new recipe would compute again identically; everything else is made anew.
        """
        file = self.path / "recipe.yaml"
        if file.exists():
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
            held = self._sections_held()
            asked = recipe.model_dump(mode="json")
            differences = [line for key in held for line in _differences(found.get(key), asked[key], key)]
            if differences and not overwrite:
                raise RecipeError(
                    f"{self.path} holds the results of another recipe ({'; '.join(differences[:4])}); "
                    "choose another folder with output=…, or pass --overwrite"
                )
        elif self.path.exists() and any(self.path.iterdir()) and not overwrite:
            raise RecipeError(f"{self.path} is not empty and is no run folder; choose another with output=…")
        if self.main:
            write_atomically(file, recipe.to_yaml())

    def _sections_held(self) -> Collection[str]:
        """The recipe's sections that what is in the folder depends on; a plan or a score is cheap and binds nothing."""
        if any((self.path / name).exists() for name in ("metrics.jsonl", "pruned", "model")):
            return Recipe.model_fields.keys()
        return ("seed", "model", "data", "mine") if (self.path / "mined").exists() else ()

    def artifact(
        self, name: str, *, key: str, make: Callable[[], T], save: Callable[[T, Path], None], load: Callable[[Path], T]
    ) -> T:
        """Load the artifact if it was made from the inputs that `key` stands for; otherwise make and save it."""
        file = self.path / name
        if file.exists() and self._keys().get(name) == key:
            return load(file)
        made = make()
        if self.main:
            self._forget(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            save(made, file)
            self._remember(name, key)
        return made

    def is_current(self, name: str, *, key: str) -> bool:
        """Whether the artifact is there and was made from these inputs."""
        return (self.path / name).exists() and self._keys().get(name) == key

    def write_json(self, name: str, content: Any) -> None:
        if self.main:
            write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rewrite `metrics.jsonl`, one object per evaluated variant."""
        if self.main:
            write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def _keys(self) -> dict[str, str]:
        file = self.path / "keys.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def _remember(self, name: str, key: str) -> None:
        self.write_json("keys.json", self._keys() | {name: key})

    def _forget(self, name: str) -> None:
        """Remove a stale artifact before it is made again, so that a crash in between cannot leave a mixture."""
        keys = self._keys()
        if name in keys:
            del keys[name]
            self.write_json("keys.json", keys)
        target = self.path / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def _differences(old: Any, new: Any, path: str = "") -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield f"{path}: {old!r} there, {new!r} asked"
