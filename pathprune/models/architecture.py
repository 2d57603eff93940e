"""What a timm model is built from, as plain data: its architecture, input and class names."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.models import get_model_args, get_model_input_config, is_model
from torch import nn

from pathprune.models.transformers_config import build_transformers, config_args, labels_of
from pathprune.models.transformers_vit import TransformersModel
from pathprune.models.weights import CheckpointError

# arguments of timm.create_model that name files and downloads rather than describe the model
_NOT_ARCHITECTURE = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


@dataclass(frozen=True)
class Architecture:
    """A name in timm's registry and the keyword arguments that `timm.create_model` needs beside it.

    Of Transformers' library: the name of a model class and the content of its config.
    """

    name: str
    args: Mapping[str, Any]
    library: str = "timm"  # or "transformers"

    @classmethod
    def parse(cls, given: Architecture | Mapping[str, Any] | str) -> Architecture:
        """Read an architecture given as one, as a name, or as `{"name": ..., "args": {...}}`; must be plain data."""
        if isinstance(given, str):
            given = cls(given, {})
        elif not isinstance(given, cls):
            if not (
                isinstance(given, Mapping)
                and isinstance(given.get("name"), str)
                and set(given) <= {"name", "args", "library"}
                and given.get("library", "timm") in ("timm", "transformers")
            ):
                raise CheckpointError(
                    f'an architecture is a timm name or {{"name": timm name, "args": {{...}}}}, got {given!r}'
                )
            given = cls(given["name"], dict(given.get("args", {})), given.get("library", "timm"))
        given._check()
        return given

    @classmethod
    def of(cls, model: nn.Module) -> Architecture:
        """The architecture of a model that `timm.create_model` made, whatever it was changed to since.

        timm's record of the arguments is completed from the model itself.
        """
        if isinstance(model, TransformersModel):
            return cls.parse(cls(type(model.model).__name__, config_args(model), "transformers"))
        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
        if not name:
            raise CheckpointError(
                f"timm.create_model did not make this {type(model).__name__}, so how to build it again is unknown; "
                'pass architecture={"name": a timm name, "args": {...}} with which timm.create_model makes its like'
            )
        args = {**getattr(model, "_model_args", {}), **get_model_args(model), **_depth(model)}
        return cls.parse(cls(name, {k: v for k, v in args.items() if k not in _NOT_ARCHITECTURE}))

    def build(self, *, data_config: Mapping[str, Any], class_names: Sequence[str] | None) -> nn.Module:
        """Make the dense model with random weights, on the CPU; the random state is left as it was."""
        if self.library == "transformers":
            return build_transformers(self.name, self.args, data_config=data_config, class_names=class_names)
        if not is_model(self.name):
            raise CheckpointError(unknown_model(self.name))
        overlay = dict(data_config)
        if class_names is not None:
            overlay["label_names"] = tuple(class_names)
        if "num_classes" in self.args:
            overlay["num_classes"] = self.args["num_classes"]
        try:
            with torch.random.fork_rng(devices=[]):
                model = timm.create_model(self.name, pretrained_cfg_overlay=overlay, **self.args)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise CheckpointError(f"timm cannot make {self.name} with {dict(self.args)}: {error}") from error
        return model.eval()

    def _check(self) -> None:
        refused = [name for name in _NOT_ARCHITECTURE if name in self.args]
        if refused:
            raise CheckpointError(f"{', '.join(refused)} cannot be among the args of an architecture; leave it out")
        for name, value in self.args.items():
            try:
                json.dumps(value)
            except TypeError as error:
                raise CheckpointError(
                    f"model argument {name}={value!r} cannot be written as JSON; pass architecture= with a plain value "
                    "for it, such as a layer's timm name"
                ) from error


def unknown_model(name: str) -> str:
    """The message for a name that timm does not know, with the nearest ones that it does."""
    near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"
    return f"unknown model '{name}': not a name of timm {timm.__version__}; {hint}"


def data_config_of(model: nn.Module) -> dict[str, Any]:
    """The model's input as `timm.data.create_transform` takes it; its own image size counts, not the registry's."""
    if isinstance(model, TransformersModel):
        if model.data_config is None:
            raise CheckpointError("how images are prepared for this Transformers model is unknown; pass data_config=…")
        return dict(model.data_config)
    config = dict(resolve_model_data_config(model))  # type: ignore[no-untyped-call]
    config["input_size"] = _input_size(model) or config["input_size"]
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}


def class_names_of(model: nn.Module) -> tuple[str, ...] | None:
    """Class names that came with the model's weights, if they still fit its head."""
    if isinstance(model, TransformersModel):
        return labels_of(model)
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    if names is None or len(names) != getattr(model, "num_classes", None):
        return None
    return tuple(names)


def _input_size(model: Any) -> tuple[int, int, int] | None:
    """Channels, height and width that the model is made for; None where only the registry says."""
    embed = getattr(model, "patch_embed", None)
    projection, size = getattr(embed, "proj", None), getattr(embed, "img_size", None)
    if isinstance(projection, nn.Conv2d) and size is not None:
        return (projection.in_channels, *size)
    return get_model_input_config(model)["input_size"] if hasattr(model, "_traits") else None


def _depth(model: Any) -> dict[str, int]:
    """The number of blocks, where the model's class takes one: blocks may be gone since the model was made."""
    takes_depth = any("depth" in signature(kind).parameters for kind in type(model).__mro__)
    return {"depth": len(model.blocks)} if takes_depth and hasattr(model, "blocks") else {}
