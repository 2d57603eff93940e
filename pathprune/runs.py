"""The run folder: artifacts written atomically, each with the key of the inputs that it was computed from.

<run folder>/
recipe.yaml                     the resolved recipe
environment.json                versions and device
keys.json                       artifact -> key of its inputs
work.json                       artifact -> seconds and multiply-accumulates that computing it took
images/mine.safetensors         the sample of images to mine
accuracy/<tokens>.json          agreement of a sample's paths with converged paths, and the number of nodes
mined/<tokens>/stats.safetensors, paths.parquet
mining/<tokens>/                finished shards of a mining run in progress
statistics.safetensors          activation statistics of the calibration images
scores/<criterion>.safetensors
damage/<criterion>--<compensation>.json     output damage of narrowing each block alone
budgets/latency-<ratio>-<key>.json          the rung whose measured latency meets the ratio
plans/<variant>.json
evaluations/<variant>.safetensors   outcome of every evaluation image; under validation/, for max_drop
rows/<variant>.json             the variant's row of metrics.jsonl, without latency
pruned/<variant>/               checkpoints
latency.json, metrics.jsonl
report.html, figures/, tables/  results for people and for other programs
seeds/<seed>/                   the same again for further seeds of a comparison
model/, history.json            the model that `finetune` trained, and one record per epoch
recovered/<variant>/            checkpoints of variants that were trained after pruning
recovering/<variant>/           finished rounds of a recovery in progress
inspect/, inspect.html          measurements of `inspect`, and their page
bench/, bench.json, bench.html  measurements of `bench`, and their page
training/<key>.pt               state from which an interrupted training resumes
logs/                           output of Accelerate's trackers
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from safetensors import SafetensorError

from pathprune.artifacts import Artifact, load_json
from pathprune.files import remove, write_atomically, write_text
from pathprune.recipe import Recipe, RecipeError

log = logging.getLogger(__name__)

T = TypeVar("T")

# settings whose further entries only add variants to the present ones
_LISTS_OF_VARIANTS = ("score.criteria", "compensation", "prune.ratio", "prune.save")

_KEYS = "keys.json"  # its presence marks a run folder
_WORK = "work.json"


@dataclass(frozen=True)
class Work:
    """Cost of computing an artifact: wall-clock seconds, and multiply-accumulates where they were counted."""

    seconds: float
    macs: float | None = None


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one recipe. `main` is true in the one process that writes."""

    path: Path
    main: bool = True
    _used: set[str] = field(default_factory=set)

    def claim(self, recipe: Recipe, *, overwrite: bool) -> None:
        """Take the folder for this recipe.

        A recipe that only adds variants continues from the present results. With `overwrite`, artifacts that the new
        recipe computes from the same inputs stay. Raises `RecipeError` for another recipe's results without
        `overwrite`, and for a folder that holds anything but a run.
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
        """List the settings of `recipe` that differ from those of the stored recipe, in recipe order."""
        try:
            stored = yaml.safe_load((self.path / "recipe.yaml").read_text(encoding="utf-8"))
        except yaml.YAMLError:
            stored = None
        if not isinstance(stored, dict):
            return ["its recipe.yaml cannot be read"]
        new = recipe.model_dump(mode="json")
        return [line for key in self._binding_sections() for line in _differences(stored.get(key), new[key], key)]

    def _binding_sections(self) -> Collection[str]:
        """Return the recipe's sections that the folder's results depend on. Plans and scores bind none."""
        if any((self.path / name).exists() for name in ("metrics.jsonl", "pruned", "model")):
            only_add = ("compare", "inspect", "report", "trackers")
            return [section for section in Recipe.model_fields if section not in only_add]
        mined = (self.path / "mined").exists() or (self.path / "mining").exists()
        return ("seed", "classes", "model", "data", "mine") if mined else ()

    def is_current(self, artifact: Artifact[Any]) -> bool:
        """Return True if the artifact is stored and its inputs are unchanged; a current artifact counts as used."""
        current = (self.path / artifact.name).exists() and self._keys().get(artifact.name) == artifact.key
        if current:
            self._used.add(artifact.name)
        return current

    def read(self, artifact: Artifact[T]) -> T | None:
        """Load a current artifact, or return None where it is absent, stale or unreadable."""
        if not self.is_current(artifact):
            return None
        file = self.path / artifact.name
        try:
            return artifact.codec.load(file)
        except (SafetensorError, ValueError, KeyError, OSError) as error:
            log.warning("%s cannot be read and is computed again: %s", file, error)
            return None

    def write(self, artifact: Artifact[Any], value: Any) -> None:
        """Store the artifact, from the main process; its file or folder appears whole or not at all."""
        if self.main:
            self._discard(artifact.name)
            file = self.path / artifact.name
            file.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(file) as part:
                artifact.codec.save(value, part)
            self._used.add(artifact.name)
            self.write_json(_KEYS, self._keys() | {artifact.name: artifact.key})

    def obtain(self, artifact: Artifact[T], compute: Callable[[], T]) -> T:
        """Load the artifact, or compute and store it."""
        stored = self.read(artifact)
        if stored is not None:
            return stored
        value = compute()
        self.write(artifact, value)
        return value

    def discard_unused(self, *folders: str) -> None:
        """Delete this run's unused artifacts in these folders: an overwritten recipe left them."""
        if self.main:
            for name in [name for name in self._keys() if name.startswith(folders) and name not in self._used]:
                self._discard(name)

    def discard_folder(self, folder: str) -> None:
        """Delete a folder of intermediate results, with the keys of its artifacts."""
        if self.main:
            kept = {name: key for name, key in self._keys().items() if not name.startswith(f"{folder}/")}
            self.write_json(_KEYS, kept)
            remove(self.path / folder)

    def work(self, artifact: Artifact[Any]) -> Work | None:
        """Return the recorded cost of computing an artifact, or None where none was recorded for its inputs."""
        entry = self._work().get(artifact.name)
        return Work(entry["seconds"], entry["macs"]) if entry and entry["key"] == artifact.key else None

    def add_work(self, artifact: Artifact[Any], *, seconds: float = 0.0, macs: float | None = None) -> None:
        """Record the cost of computing an artifact; an interrupted attempt's seconds add up with the next one's."""
        before = self.work(artifact) or Work(0.0)
        entry = {
            "key": artifact.key,
            "seconds": before.seconds + seconds,
            "macs": before.macs if macs is None else macs,
        }
        self.write_json(_WORK, self._work() | {artifact.name: entry})

    def write_json(self, name: str, content: Any) -> None:
        """Write plain data as a file of the folder, from the main process."""
        if self.main:
            write_text(self.path / name, json.dumps(content, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the folder, from the main process."""
        if self.main:
            write_text(self.path / name, text)

    def _keys(self) -> dict[str, str]:
        file = self.path / _KEYS
        return load_json(file) if file.exists() else {}

    def _work(self) -> dict[str, Any]:
        file = self.path / _WORK
        return load_json(file) if file.exists() else {}

    def _discard(self, name: str) -> None:
        """Remove an artifact's key, then its file, so that a crash in between leaves no stale key."""
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
        stored, given = ("{…}" if isinstance(setting, dict) else repr(setting) for setting in (old, new))
        yield f"{path}: {stored} there, {given} asked"


def _only_adds(old: Any, new: Any, path: str) -> bool:
    """Return True if a changed setting keeps every present variant and adds further ones."""
    if path == "recover":
        return old is None
    return path in _LISTS_OF_VARIANTS and all(entry in new for entry in old or ())
