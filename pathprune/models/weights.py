"""Files of weights: reading without running code from them, and loading into a model that they match exactly."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

log = logging.getLogger(__name__)

_PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")  # in timm's order: averaged weights first
# prefixes of DistributedDataParallel, torch.compile, Lightning modules, and Transformers' wrapper of timm models
_PREFIXES = ("module.", "_orig_mod.", "model.", "timm_model.")
_WEIGHT_FILES = (  # as timm, Transformers, its Trainer and Accelerate name them
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pth",
    "model.pth",
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not match its model."""


def one_line(error: Exception) -> str:
    """Return an error's message on one line, or the error's type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def find_weights(path: Path) -> Path:
    """Return the file of weights at `path`: the file itself, or the one in this folder."""
    if not path.is_dir():
        return path
    for name in _WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    steps = sorted(
        (step for step in path.glob("checkpoint-*") if step.is_dir()), key=lambda step: (len(step.name), step)
    )
    if steps:
        raise CheckpointError(
            f"{path} holds checkpoints of a training, {', '.join(s.name for s in steps)}; pass one of them"
        )
    raise CheckpointError(f"{path} holds no weights; it needs one of {', '.join(_WEIGHT_FILES)}")


def read_weights(file: Path, *, unwrap: bool = True) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors`, or from a torch file with nothing but tensors and containers.

    An `.index.json` file stands for the shards that it names. With `unwrap`, the entries and prefixes that training
    scripts put around a state dict are removed.
    """
    if not file.is_file():
        raise CheckpointError(f"checkpoint {file} does not exist; pass a .safetensors, .pth, .pt or .npz file")
    if file.name.endswith(".index.json"):
        return {name: tensor for shard in _list_shards(file) for name, tensor in read_weights(shard).items()}
    if file.suffix == ".safetensors":
        try:
            state = load_file(file)
            return _unwrap_state(state, file) if unwrap else state
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read {file} as safetensors: {one_line(error)}") from error
    if file.suffix not in _PICKLED:
        raise CheckpointError(
            f"checkpoint {file} has the extension '{file.suffix}'; pass a .safetensors, .pth or .pt file"
        )
    try:
        # timm's training script saves its arguments as a Namespace, a class that runs no code
        with torch.serialization.safe_globals([argparse.Namespace]):
            return _unwrap_state(torch.load(file, map_location="cpu", weights_only=True), file)
    except UnpicklingError as error:
        raise CheckpointError(
            f"{file} is not a torch checkpoint of tensors only; other objects in it are not loaded, since that can run "
            "code. If you trust the file, save its weights again: torch.save(checkpoint['model'], 'weights.pth')"
        ) from error
    except (OSError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"cannot read {file} as a torch checkpoint: {one_line(error)}") from error


def fill_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str, advice: str) -> None:
    """Copy `state` into `model` in place; weights take the model's dtype.

    Raises `CheckpointError` unless every name and shape matches. In its message `source` names the weights and `advice`
    tells the user what to do.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    common = shapes.keys() & state.keys()
    mismatched = [
        f"{name} {list(state[name].shape)} instead of {list(shapes[name])}"
        for name in shapes
        if name in common and tuple(state[name].shape) != shapes[name]
    ]
    differences = [
        _summarize("missing", [name for name in shapes if name not in common]),
        _summarize("unexpected", [name for name in state if name not in common]),
        _summarize("of another shape", mismatched),
    ]
    if any(differences):
        raise CheckpointError(f"{source} does not match the model: {'; '.join(filter(None, differences))}; {advice}")
    model.load_state_dict(dict(state), strict=True)


def _summarize(label: str, names: list[str]) -> str:
    """Return the number of names and the first three, or an empty string for no names."""
    more = ", …" if len(names) > 3 else ""
    return f"{len(names)} {label} ({', '.join(names[:3])}{more})" if names else ""


def _unwrap_state(content: Any, file: Path) -> dict[str, Tensor]:
    """Return the state dict in a training checkpoint, without the prefixes that wrappers add to its names."""
    if isinstance(content, Mapping):
        for key in _STATE_KEYS:
            if isinstance(content.get(key), Mapping):
                log.info("%s: taking the weights under '%s'", file, key)
                content = content[key]
                break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        summary = (
            _summarize("entries", [str(key) for key in content])
            if isinstance(content, Mapping)
            else type(content).__name__
        )
        raise CheckpointError(
            f"{file} holds no state dict, but {summary or 'nothing'}; pass a file with a state dict, alone or under "
            f"one of the keys {', '.join(repr(key) for key in _STATE_KEYS)}"
        )
    state = {str(name): tensor for name, tensor in content.items()}
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _list_shards(index: Path) -> list[Path]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"cannot read {index} as the index of a sharded checkpoint: {one_line(error)}") from error
    return [index.parent / Path(name).name for name in sorted(set(names))]
