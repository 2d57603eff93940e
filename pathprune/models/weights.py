"""Weights as files: read without running anything that is in them, and put into a model that they fit exactly."""

from __future__ import annotations

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
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or is not one of the model that it is meant for."""


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors`, or from a torch file that holds nothing but tensors and containers."""
    if not file.is_file():
        raise CheckpointError(f"checkpoint {file} does not exist; give a .safetensors, .pth or .pt file")
    if file.suffix == ".safetensors":
        try:
            return _unwrapped(load_file(file), file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read {file} as safetensors: {_line(error)}") from error
    if file.suffix not in _PICKLED:
        raise CheckpointError(
            f"checkpoint {file} has the ending '{file.suffix}'; give a .safetensors, .pth or .pt file"
        )
    try:
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
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _line(error: Exception) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
