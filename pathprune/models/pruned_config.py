"""`config.json` of a pruned checkpoint: the model without its weights, validated on reading.

Our entries are under `pathprune`. The keys next to it are for other libraries, in their own terms, if they can load the
model too (see `pathprune.models.native`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pathprune.files import write_text
from pathprune.models.architecture import Architecture
from pathprune.models.weights import CheckpointError

FORMAT = "pathprune-pruned"
VERSION = 2  # version 1 had its entries at the top level
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"


@dataclass(frozen=True)
class PrunedConfig:
    """The entries under `pathprune` in `config.json`."""

    base: Architecture  # the dense model
    widths: Mapping[str, int]  # site -> number of neurons
    data_config: Mapping[str, Any]
    class_names: tuple[str, ...] | None = None
    kept: Mapping[str, list[int]] | None = None  # site -> columns of the dense model, if known
    tied: Mapping[str, str] = field(default_factory=dict)  # tied parameter -> parameter under which it is stored
    base_model: str | None = None  # hub name of the dense weights
    license: str | None = None  # of the weights
    provenance: Mapping[str, Any] = field(default_factory=dict)  # any record of how the model was made
    metrics: Mapping[str, Any] | None = None  # rows of `metrics.jsonl` under `dense` and `pruned`, images under `data`


def write_pruned_config(folder: Path, config: PrunedConfig, *, native: Mapping[str, Any]) -> None:
    """Write `config.json`; the keys `native`, for other libraries, go next to ours."""
    content = {"format": FORMAT, "version": VERSION, **native, "pathprune": asdict(config)}
    try:
        text = json.dumps(content, indent=2)
    except TypeError as error:
        raise CheckpointError(f"provenance, metrics and data_config must be plain JSON data: {error}") from error
    write_text(folder / CONFIG_FILE, text + "\n")


def read_pruned_config(folder: str | Path) -> PrunedConfig:
    """Read and validate `config.json` of a pruned checkpoint."""
    file = Path(folder) / CONFIG_FILE
    content = _read_json(file)
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{folder} has version {content.get('version')!r} of the format, this pathprune reads version {VERSION}; "
            "load it with the pathprune that wrote it or a newer one"
        )
    values = content.get("pathprune")
    keys = {each.name for each in fields(PrunedConfig)}
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: pathprune must be an object, got {values!r}")
    missing = {"base", "widths", "data_config"} - values.keys()
    if missing or values.keys() - keys:
        raise CheckpointError(
            f"{file}: missing {sorted(missing)}, unknown {sorted(values.keys() - keys)}; keys are {sorted(keys)}"
        )
    for key in ("widths", "data_config", "tied", "provenance"):
        if not isinstance(values.get(key, {}), dict):
            raise CheckpointError(f"{file}: {key} must be an object, got {values[key]!r}")
    values["base"] = Architecture.parse(values["base"])
    if values.get("class_names") is not None:
        values["class_names"] = tuple(values["class_names"])
    values["data_config"] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["data_config"].items()}
    return PrunedConfig(**values)


def read_native_keys(folder: str | Path) -> dict[str, Any]:
    """Return the keys of `config.json` for other libraries."""
    content = _read_json(Path(folder) / CONFIG_FILE)
    return {key: value for key, value in content.items() if key not in ("format", "version", "pathprune")}


def is_pruned_folder(folder: str | Path) -> bool:
    """Return True if `folder` holds a checkpoint of this format, in any version."""
    try:
        _read_json(Path(folder) / CONFIG_FILE)
    except CheckpointError:
        return False
    return True


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"no pruned checkpoint in {file.parent}: cannot read {file}") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{file.parent} holds no checkpoint that save_pruned wrote: {file} has no format '{FORMAT}'"
        )
    return content
