"""The run folder: every artifact's name, written atomically, with the key of the inputs it was made from.

<run folder>/
recipe.yaml                     the resolved recipe
environment.json                versions and device
keys.json                       artifact -> key of what it was made from
accuracy/<tokens>.json          agreement of a sample's paths with converged ones, and the number of nodes
seconds.json                    how long mining, statistics, scores and fits took
mined/<tokens>/stats.safetensors, paths.parquet
mining/<tokens>/                what is finished of a mining that is not
statistics.safetensors          activation statistics of the calibration images
scores/<criterion>.safetensors
damage/<criterion>--<compensation>.json     what narrowing each block alone does to the answers
budgets/latency-<ratio>-<key>.json          the rung whose measured latency meets the ratio
work/                           multiply-accumulates that mining, statistics, scores, damage and fits took
plans/<variant>.json
evaluations/<variant>.safetensors   outcome of every evaluation image; in validation/, of a max_drop's
rows/<variant>.json             the variant's row of metrics.jsonl, latency left out
pruned/<variant>/               checkpoints
latency.json, metrics.jsonl
report.html, figures/, tables/  what it comes to, for people and for other programs
seeds/<seed>/                   the same again for the further seeds of a comparison
model/, history.json            what `finetune` trained, and the record of its epochs
recovered/<variant>/            checkpoints of variants that were trained after pruning
recovering/<variant>/           what is finished of one that is pruned in rounds
inspect/, inspect.html           what `inspect` measured, and its page
bench/, bench.json, bench.html  what `bench` measured, and its page
training/<key>.pt               where an unfinished training goes on
logs/                           what Accelerate's trackers write
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from safetensors import SafetensorError

from pathprune.files import remove, write_atomically, write_text
from pathprune.recipe import Recipe, RecipeError

log = logging.getLogger(__name__)

T = TypeVar("T")

# settings whose further entries only add variants to those that are there
_LISTS_OF_VARIANTS = ("score.criteria", "compensation", "prune.ratio", "prune.save")

_SECONDS = "seconds.json"
_KEYS = "keys.json"  # also what tells a run folder from others


def read_json(file: Path) -> Any:
    """Plain data from a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one recipe. `main` is true in the one process that writes."""

    path: Path
    main: bool = True
    _used: set[str] = field(default_factory=set)

    def claim(self, recipe: Recipe, *, overwrite: bool) -> None:
        """Make the folder this recipe's own; refuse one with another recipe's results unless told to overwrite.

        A recipe that only asks for more, of the same, goes on from what is there. Overwriting keeps what the new recipe
        would compute identically. A folder with anything but a run is refused.
        """
        file = self.path / "recipe.yaml"
        if self.path.exists() and not self.path.is_dir():
            raise RecipeError(f"{self.path} is a file; choose a folder with output=…")
        if (self.path / _KEYS).exists():
            differences = self._differences_to(recipe) if file.exists() and not overwrite else []
            if differences:
                raise RecipeError(
                    f"{self.path} holds the results of another recipe ({'; '.join(differences[:4])}); "
                    "choose another folder with output=…, or pass --overwrite"
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise RecipeError(f"{self.path} is not empty and is no run folder; choose another with output=…")
        if self.main:
            self.write_json(_KEYS, self._keys())
            write_text(file, recipe.to_yaml())

    def _differences_to(self, recipe: Recipe) -> list[str]:
        """What of `recipe` differs from the recipe whose results are in the folder."""
        try:
            found = yaml.safe_load((self.path / "recipe.yaml").read_text(encoding="utf-8"))
        except yaml.YAMLError:
            found = None
        if not isinstance(found, dict):
            return ["its recipe.yaml cannot be read"]
        asked = recipe.model_dump(mode="json")
        return [line for key in self._sections_held() for line in _differences(found.get(key), asked[key], key)]

    def _sections_held(self) -> Collection[str]:
        """The recipe's sections that what is in the folder depends on; a plan or a score is cheap and binds nothing."""
        if any((self.path / name).exists() for name in ("metrics.jsonl", "pruned", "model")):
            only_add = ("compare", "inspect", "report", "trackers")
            return [section for section in Recipe.model_fields if section not in only_add]
        mined = (self.path / "mined").exists() or (self.path / "mining").exists()
        return ("seed", "classes", "model", "data", "mine") if mined else ()

    def artifact(
        self,
        name: str,
        *,
        key: str,
        make: Callable[[], T],
        save: Callable[[T, Path], object],
        load: Callable[[Path], T],
    ) -> T:
        """Load the artifact if it was made from the inputs that `key` stands for; otherwise make and save it.

        One that cannot be read is made again. `save` writes a file or a folder, which appears whole or not at all.
        """
        found = self.current(name, key=key, load=load)
        if found:
            return found[0]
        file = self.path / name
        made = make()
        if self.main:
            self._forget(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(file) as part:
                save(made, part)
            self._remember(name, key)
        return made

    def json_artifact(self, name: str, *, key: str, make: Callable[[], Any]) -> Any:
        """An artifact of plain JSON data."""

        def save(content: Any, file: Path) -> None:
            file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

        return self.artifact(name, key=key, make=make, save=save, load=read_json)

    def current(self, name: str, *, key: str, load: Callable[[Path], T]) -> tuple[T] | None:
        """Load the artifact, as a tuple of one, if it was made from these inputs and can be read."""
        file = self.path / name
        if self.is_current(name, key=key):
            try:
                return (load(file),)
            except (SafetensorError, ValueError, KeyError, OSError) as error:
                log.warning("%s cannot be read and is made again: %s", file, error)
        return None

    def forget_unused(self, *folders: str) -> None:
        """Delete artifacts of these folders that this run did not use: those of a recipe that was overwritten."""
        if self.main:
            for name in [name for name in self._keys() if name.startswith(folders) and name not in self._used]:
                self._forget(name)

    def keep(self, name: str, *, key: str) -> None:
        """Let `forget_unused` leave an artifact, if it was made from these inputs."""
        self.is_current(name, key=key)

    def forget(self, folder: str) -> None:
        """Delete what is in a folder of intermediate results, and that it was there."""
        if self.main:
            self.write_json(
                _KEYS, {name: key for name, key in self._keys().items() if not name.startswith(f"{folder}/")}
            )
            remove(self.path / folder)

    def is_current(self, name: str, *, key: str) -> bool:
        """Whether the artifact is there and was made from these inputs; one that is counts as used."""
        current = (self.path / name).exists() and self._keys().get(name) == key
        if current:
            self._used.add(name)
        return current

    @contextmanager
    def timed(self, name: str, *, key: str) -> Iterator[None]:
        """Add the seconds that pass while open to those of this work; what was begun under another key is forgotten."""
        start = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - start + (self.seconds(name, key=key) or 0)
            self.write_json(_SECONDS, self._seconds() | {name: {"key": key, "seconds": passed}})

    def seconds(self, name: str, *, key: str) -> float | None:
        """How long this work took, in every run together; None where it was not timed."""
        found = self._seconds().get(name)
        return found["seconds"] if found and found["key"] == key else None

    def _seconds(self) -> dict[str, Any]:
        file = self.path / _SECONDS
        return read_json(file) if file.exists() else {}

    def write_json(self, name: str, content: Any) -> None:
        if self.main:
            write_text(self.path / name, json.dumps(content, indent=2) + "\n")

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rewrite `metrics.jsonl`, one object per evaluated variant."""
        if self.main:
            write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def _keys(self) -> dict[str, str]:
        file = self.path / _KEYS
        return read_json(file) if file.exists() else {}

    def _remember(self, name: str, key: str) -> None:
        self._used.add(name)
        self.write_json(_KEYS, self._keys() | {name: key})

    def _forget(self, name: str) -> None:
        """Remove a stale artifact before it is made again, so that a crash in between cannot leave a mixture."""
        keys = self._keys()
        if name in keys:
            del keys[name]
            self.write_json(_KEYS, keys)
        remove(self.path / name)


def _differences(old: Any, new: Any, path: str = "") -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new and not _only_adds(old, new, path):
        there, asked = ("{…}" if isinstance(setting, dict) else repr(setting) for setting in (old, new))
        yield f"{path}: {there} there, {asked} asked"


def _only_adds(old: Any, new: Any, path: str) -> bool:
    """Whether a changed setting keeps every variant that is there, and asks for further ones."""
    if path == "recover":
        return old is None
    return path in _LISTS_OF_VARIANTS and all(entry in new for entry in old or ())
