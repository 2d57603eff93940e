"""Weights as files: read without running anything that is in them, and put into a model that they fit exactly."""

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
_WRAPPED_IN = ("state_dict_ema", "model_ema", "state_dict", "model")  # as timm: averaged weights first
# of DistributedDataParallel, torch.compile, Lightning modules, and Transformers' wrapper of timm models
_PREFIXES = ("module.", "_orig_mod.", "model.", "timm_model.")
_IN_FOLDERS = (  # as timm, Transformers, its Trainer and Accelerate name them
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pth",
    "model.pth",
)


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or is not one of the model that it is meant for."""


def find_weights(path: Path) -> Path:
    """The file of weights that `path` is, or that is in this folder."""
    if not path.is_dir():
        return path
    for name in _IN_FOLDERS:
        if (path / name).is_file():
            return path / name
    steps = sorted(
        (step for step in path.glob("checkpoint-*") if step.is_dir()), key=lambda step: (len(step.name), step)
    )
    if steps:
        raise CheckpointError(
            f"{path} holds checkpoints of a training, {', '.join(s.name for s in steps)}; give one of them"
        )
    raise CheckpointError(f"{path} holds no weights; one of {', '.join(_IN_FOLDERS)} is needed")


def read_weights(file: Path, *, unwrap: bool = True) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors`, or from a torch file that holds nothing but tensors and containers.

    An `.index.json` stands for the files that it names. With `unwrap`, what training scripts and wrappers put around
    the weights is taken off.
    """
    if not file.is_file():
        raise CheckpointError(f"checkpoint {file} does not exist; give a .safetensors, .pth, .pt or .npz file")
    if file.name.endswith(".index.json"):
        return {name: tensor for shard in _shards(file) for name, tensor in read_weights(shard).items()}
    if file.suffix == ".safetensors":
        try:
            state = load_file(file)
            return _unwrapped(state, file) if unwrap else state
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read {file} as safetensors: {_line(error)}") from error
    if file.suffix not in _PICKLED:
        raise CheckpointError(
            f"checkpoint {file} has the ending '{file.suffix}'; give a .safetensors, .pth or .pt file"
        )
    try:
        # timm's training script keeps its arguments in one: a class without code of its own
        with torch.serialization.safe_globals([argparse.Namespace]):
            return _unwrapped(torch.load(file, map_location="cpu", weights_only=True), file)
    except UnpicklingError as error:
        raise CheckpointError(
            f"{file} is no torch checkpoint of tensors alone, and objects in it are not loaded, since that can run "
            "code; where you trust it, save its weights again: torch.save(checkpoint['model'], 'weights.pth')"
        ) from error
    except (OSError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"cannot read {file} as a torch checkpoint: {_line(error)}") from error


def fill_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str, advice: str) -> None:
    """Copy `state` into `model`, in place; raises `CheckpointError` unless every name and shape matches.

    Weights take the model's dtype. `source` names the weights in the error, and `advice` says what to do about it.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shared = wanted.keys() & state.keys()
    reshaped = [
        f"{name} {list(state[name].shape)} instead of {list(wanted[name])}"
        for name in wanted
        if name in shared and tuple(state[name].shape) != wanted[name]
    ]
    differences = [
        _few("missing", [name for name in wanted if name not in shared]),
        _few("unexpected", [name for name in state if name not in shared]),
        _few("of another shape", reshaped),
    ]
    if any(differences):
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(filter(None, differences))}; {advice}")
    model.load_state_dict(dict(state), strict=True)


def _few(kind: str, names: list[str]) -> str:
    more = ", …" if len(names) > 3 else ""
    return f"{len(names)} {kind} ({', '.join(names[:3])}{more})" if names else ""


def _unwrapped(content: Any, file: Path) -> dict[str, Tensor]:
    """Find the state dict within a training checkpoint, and take wrappers' prefixes off its names."""
    if isinstance(content, Mapping):
        for key in _WRAPPED_IN:
            if isinstance(content.get(key), Mapping):
                log.info("%s: taking the weights under '%s'", file, key)
                content = content[key]
                break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        held = (
            _few("entries", [str(key) for key in content]) if isinstance(content, Mapping) else type(content).__name__
        )
        raise CheckpointError(
            f"{file} holds no state dict, but {held or 'nothing'}; give a state dict, alone or under "
            f"{', '.join(repr(key) for key in _WRAPPED_IN)}"
        )
    state = {str(name): tensor for name, tensor in content.items()}
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _shards(index: Path) -> list[Path]:
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"cannot read {index} as the index of a checkpoint in parts: {_line(error)}") from error
    return [index.parent / Path(name).name for name in sorted(set(named))]


def _line(error: Exception) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
