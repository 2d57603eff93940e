"""Architectures as plain data: enough to build a model again, its preprocessing and its class names."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal, get_args

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.models import get_model_args, get_model_input_config, is_model
from torch import nn

from pathprune.models.transformers_config import build_transformers, read_config_args, read_labels
from pathprune.models.transformers_vit import TransformersModel
from pathprune.models.weights import CheckpointError

Library = Literal["timm", "transformers"]

# arguments of timm.create_model for files and downloads, which are not part of an architecture
_NOT_ARCHITECTURE = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


@dataclass(frozen=True)
class Architecture:
    """A model of one of the libraries, without its weights.

    - timm: a name in its registry and keyword arguments of `timm.create_model`.
    - Transformers: the name of a model class and the content of its config.
    """

    name: str
    args: Mapping[str, Any]
    library: Library = "timm"

    @classmethod
    def parse(cls, spec: Architecture | Mapping[str, Any] | str) -> Architecture:
        """Read an architecture from a timm name or from `{"name": …, "args": {…}}`, and check its arguments."""
        if isinstance(spec, str):
            spec = cls(spec, {})
        elif not isinstance(spec, cls):
            if not (
                isinstance(spec, Mapping)
                and isinstance(spec.get("name"), str)
                and set(spec) <= {"name", "args", "library"}
                and spec.get("library", "timm") in get_args(Library)
            ):
                raise CheckpointError(
                    f'an architecture is a timm name or {{"name": timm name, "args": {{...}}}}, got {spec!r}'
                )
            spec = cls(spec["name"], dict(spec.get("args", {})), spec.get("library", "timm"))
        spec._check()
        return spec

    @classmethod
    def of(cls, model: nn.Module) -> Architecture:
        """Read the architecture of a model that `timm.create_model` or Transformers built.

        Arguments that timm does not record are read off the model, which may have changed since.
        """
        if isinstance(model, TransformersModel):
            return cls.parse(cls(type(model.model).__name__, read_config_args(model), "transformers"))
        name = read_pretrained_cfg(model).get("architecture")
        if not name:
            raise CheckpointError(
                f"the architecture of this {type(model).__name__} is unknown: timm.create_model did not build it; pass "
                'architecture={"name": a timm name, "args": {...}} with which timm.create_model builds the same model'
            )
        args = {**getattr(model, "_model_args", {}), **get_model_args(model), **_read_depth(model)}
        return cls.parse(cls(name, {k: v for k, v in args.items() if k not in _NOT_ARCHITECTURE}))

    def build(self, *, data_config: Mapping[str, Any], class_names: Sequence[str] | None) -> nn.Module:
        """Build the dense model with random weights on the CPU, without changing torch's random state."""
        if self.library == "transformers":
            return build_transformers(self.name, self.args, data_config=data_config, class_names=class_names)
        if not is_model(self.name):
            raise CheckpointError(explain_unknown_name(self.name))
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
            raise CheckpointError(f"{', '.join(refused)} cannot be among the args of an architecture; remove it")
        for name, value in self.args.items():
            try:
                json.dumps(value)
            except TypeError as error:
                raise CheckpointError(
                    f"model argument {name}={value!r} cannot be written as JSON; pass architecture= with a plain "
                    "value, such as a layer's timm name"
                ) from error


def explain_unknown_name(name: str) -> str:
    """Return the error message for a name that timm does not know, with the nearest names that it knows."""
    near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists all names"
    return f"unknown model '{name}': not a name in timm {timm.__version__}; {hint}"


def read_data_config(model: nn.Module) -> dict[str, Any]:
    """Return the model's preprocessing as arguments of `timm.data.create_transform`.

    The image size is that of the model, which may differ from the one in timm's registry.
    """
    if isinstance(model, TransformersModel):
        if model.data_config is None:
            raise CheckpointError("the preprocessing of this Transformers model is unknown; pass data_config=…")
        return dict(model.data_config)
    config = dict(resolve_model_data_config(model))  # type: ignore[no-untyped-call]
    config["input_size"] = _read_input_size(model) or config["input_size"]
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}


def read_class_names(model: nn.Module) -> tuple[str, ...] | None:
    """Return the class names that came with the model's weights; None if they do not fit its head."""
    if isinstance(model, TransformersModel):
        return read_labels(model)
    names = read_pretrained_cfg(model).get("label_names")
    if names is None or len(names) != getattr(model, "num_classes", None):
        return None
    return tuple(names)


def list_classifiers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a timm model's classifier layers: two in a distilled model, none if timm names none."""
    names = read_pretrained_cfg(model).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def read_pretrained_cfg(model: Any) -> Mapping[str, Any]:
    """Return timm's record of the model's weights; empty for a model that timm did not build."""
    return getattr(model, "pretrained_cfg", None) or {}


def _read_input_size(model: Any) -> tuple[int, int, int] | None:
    """Return channels, height and width of the model's images; None if only timm's registry knows them."""
    embed = getattr(model, "patch_embed", None)
    projection, size = getattr(embed, "proj", None), getattr(embed, "img_size", None)
    if isinstance(projection, nn.Conv2d) and size is not None:
        return (projection.in_channels, *size)
    return get_model_input_config(model)["input_size"] if hasattr(model, "_traits") else None


def _read_depth(model: Any) -> dict[str, int]:
    """Return the number of blocks as an argument, if the model's class takes one: blocks may have been removed."""
    takes_depth = any("depth" in signature(kind).parameters for kind in type(model).__mro__)
    return {"depth": len(model.blocks)} if takes_depth and hasattr(model, "blocks") else {}
