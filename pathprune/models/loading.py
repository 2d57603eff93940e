"""Load a classifier from wherever it is: timm's registry, a hub, a folder, a weights file, or the package itself."""

from __future__ import annotations

import importlib
import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import timm
from timm.models import is_model
from torch import Tensor, nn

from pathprune.models.adapt import adapt
from pathprune.models.architecture import Architecture, class_names_of, data_config_of, unknown_model
from pathprune.models.checkpoint import load_pruned
from pathprune.models.hub import hub_config, pruned_on_hub
from pathprune.models.pruned_config import CONFIG_FILE, is_pruned_folder
from pathprune.models.transformers_load import load_transformers
from pathprune.models.weights import CheckpointError, fill_weights, find_weights, read_weights

log = logging.getLogger(__name__)

DEMO = "demo"
DEMO_FOLDER = Path(str(resources.files("pathprune"))) / "demo" / "model"

_TRANSFORMERS_NAMES = (".layernorm_before.weight", ".attention.q_proj.weight", ".self_attn.q_proj.weight")
_TIMM_IN_TRANSFORMERS = "timm_wrapper"  # Transformers' model type for timm models, whose config is timm's too


@dataclass(frozen=True)
class LoadedModel:
    """A classifier, and what is needed to feed it, to read its answers and to build it again."""

    model: nn.Module
    data_config: dict[str, Any]  # as timm.data.create_transform takes it
    class_names: tuple[str, ...] | None
    architecture: Architecture
    source: str


def load_model(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = True,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load a model: on the CPU, in eval mode, float32.

    - `name`: a timm name, `hf-hub:owner/model`, a folder (plain or `local-dir:`) that timm, Transformers (its Trainer
      too) or `save_pruned` wrote, or `demo`.
    - `checkpoint`: a `.safetensors`, `.pth`, `.pt` or original `.npz` file, or a folder of weights alone such as
      Accelerate's, instead of the weights that belong to the name.
    - `pretrained`: False without a checkpoint gives random weights.
    - `num_classes`, `image_size`: by default those of the weights. 0 leaves the head out. A head of another size is
      refused, except that hub weights get a new, untrained one (a warning says so); position embeddings are resized.
    - `model_args`: further arguments of `timm.create_model`, or keys of a Transformers config.

    Raises `CheckpointError` (a `ValueError`) with one line that says what is wrong and what to do.
    """
    folder = _folder(name)
    weights = None if checkpoint is None else find_weights(Path(checkpoint).expanduser())
    args = dict(model_args or {})
    if num_classes is not None:
        args["num_classes"] = num_classes
    if image_size is not None:
        args["img_size"] = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if folder is not None and is_pruned_folder(folder):
        if checkpoint is not None:
            raise CheckpointError(
                f"{folder} is a pruned checkpoint with its own weights; leave out checkpoint={checkpoint}"
            )
        return _described(_pruned(folder, args).float(), str(folder))
    config_folder = folder or (hub_config(name) if name.startswith("hf-hub:") else None)
    if config_folder is not None and _is_transformers(config_folder):
        source = folder or name.removeprefix("hf-hub:")
        made = load_transformers(
            source,
            state=None if weights is None else read_weights(weights),
            pretrained=pretrained,
            num_classes=num_classes,
            image_size=args.get("img_size"),
            model_args=model_args,
        )
        return _described(made, str(weights or source))
    if folder is not None:
        weights = weights or (find_weights(folder) if pretrained else None)
        return _described(_filled(f"local-dir:{folder}", args, weights), str(weights or folder))
    if not name.startswith("hf-hub:") and not is_model(name.partition(".")[0]):
        raise CheckpointError(unknown_model(name))
    if checkpoint is not None or not pretrained:
        return _described(_filled(name, args, weights), str(weights or name))
    model = _create(name, args, pretrained=True)
    stored = model.pretrained_cfg.get("num_classes")
    if num_classes and stored != num_classes:
        log.warning("%s has weights for %s classes: its head for %d is new and untrained", name, stored, num_classes)
    return _described(model, name)


def _described(model: nn.Module, source: str) -> LoadedModel:
    return LoadedModel(
        model=model.eval(),
        data_config=data_config_of(model),
        class_names=class_names_of(model),
        architecture=Architecture.of(model),
        source=source,
    )


def _folder(name: str) -> Path | None:
    """The folder that `name` means, if it means one; raises where it does not exist."""
    if name == DEMO:
        if not DEMO_FOLDER.is_dir():
            raise CheckpointError(
                f"the demo model is missing from this installation ({DEMO_FOLDER}); reinstall pathprune"
            )
        return DEMO_FOLDER
    if name.startswith("hf-hub:"):
        return pruned_on_hub(name)
    path = Path(name.removeprefix("local-dir:")).expanduser()
    is_path = name.startswith(("local-dir:", ".", "~")) or "/" in name or "\\" in name
    if is_path or (path.is_dir() and not is_model(name)):
        if path.is_file():
            raise CheckpointError(f"{path} is a file; give the model's timm name, and the file as checkpoint")
        if not path.is_dir():
            on_hub = name.count("/") == 1 and not name.startswith(("local-dir:", ".", "~", "/"))
            hint = f"for a model on the hub write hf-hub:{name}" if on_hub else "give an existing one"
            raise CheckpointError(f"folder {path} does not exist; {hint}")
        return path
    return None


def _is_transformers(folder: Path) -> bool:
    """Whether a folder is of Transformers rather than of timm; raises where it is of neither."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        find_weights(folder)  # says what is there instead
        raise CheckpointError(
            f"{folder} has no readable {CONFIG_FILE}, which would say what its weights are of; give the model's timm "
            "name, and the folder as checkpoint"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} is not valid JSON: {error}") from error
    config = config if isinstance(config, dict) else {}
    if "model_type" in config and config["model_type"] != _TIMM_IN_TRANSFORMERS:
        return True
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        raise CheckpointError(
            f"{folder / CONFIG_FILE} names neither a timm architecture nor a Transformers model; give a folder that "
            "timm, Transformers or pathprune saved"
        )
    if not is_model(architecture):
        raise CheckpointError(f"{folder / CONFIG_FILE}: {unknown_model(architecture)}")
    return False


def _pruned(folder: Path, args: Mapping[str, Any]) -> nn.Module:
    """Load a pruned folder; `args` may confirm what it is, not change it."""
    model = load_pruned(folder)
    adapted = adapt(model, check=False)
    has = {**Architecture.of(model).args, "num_classes": adapted.num_classes}
    if adapted.input_size is not None:
        has["img_size"] = adapted.input_size[1:]
    for key, value in args.items():
        if has.get(key) != value:
            raise CheckpointError(f"{folder} is a pruned model with {key}={has.get(key)}, which cannot become {value}")
    return model


def _filled(name: str, args: Mapping[str, Any], weights: Path | None) -> Any:
    """Make a model and put the weights of a file into it; sizes that are not given come from the weights."""
    if weights is None:
        return _create(name, args)
    if weights.suffix == ".npz":
        return _filled_from_jax(name, args, weights)
    state = read_weights(weights)
    if "class_embedding" in state and "conv1.weight" in state:  # OpenCLIP's tower alone: timm knows it by this prefix
        state = {f"visual.{name}": tensor for name, tensor in state.items()}
    model = _create(name, args)
    inferred = {key: value for key, value in _sizes(model, state).items() if key not in args}
    if inferred:
        model = _create(name, {**args, **inferred})
    if args.get("num_classes") == 0:
        heads = tuple(f"{head}." for head in _classifiers(model))
        state = {name: tensor for name, tensor in state.items() if not name.startswith(heads)}
    has, asked = _head_size(model, state), args.get("num_classes")
    if asked is not None and has is not None and has != asked:
        raise CheckpointError(_other_head(weights, has=has, asked=asked))
    # timm's own translation of checkpoints in other layouts; resizes position embeddings too
    translate = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    if translate is not None:
        state = translate(state, model)
    advice = "check the model's name, num_classes and image_size"
    if any(name.endswith(_TRANSFORMERS_NAMES) for name in state):
        advice = "these are names of Transformers: give the folder that save_pretrained wrote as the model's name"
    fill_weights(model, state, source=str(weights), advice=advice)
    return model


def _filled_from_jax(name: str, args: Mapping[str, Any], weights: Path) -> Any:
    """Make a model and let timm read an original `.npz` into it, which resizes position embeddings."""
    try:
        with np.load(weights, allow_pickle=False) as file:
            shapes = {key: file[key].shape for key in file.files if key.endswith("head/bias")}
            blocks = {key for key in file.files if "/encoderblock_" in key}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {weights} as an .npz file: {_first_line(error)}") from error
    has, asked = next((shape[-1] for shape in shapes.values()), None), args.get("num_classes")
    if asked and has and asked != has:
        raise CheckpointError(_other_head(weights, has=has, asked=asked))
    model = _create(name, args if has is None or asked is not None else {**args, "num_classes": has})
    depth = len({re.search(r"encoderblock_(\d+)", key)[1] for key in blocks})  # type: ignore[index]
    if depth and depth != len(model.blocks):
        raise CheckpointError(f"{weights} has {depth} blocks, the model {len(model.blocks)}; check the model's name")
    try:
        model.load_pretrained(weights)
    except (KeyError, ValueError, RuntimeError, AttributeError, AssertionError) as error:
        raise CheckpointError(
            f"timm cannot read {weights} into {name}: {_first_line(error)}; check the model's name"
        ) from error
    if has is None and model.num_classes:
        log.warning("%s has no head: that of the model, for %d classes, is untrained", weights, model.num_classes)
    return model


def _other_head(weights: Path, *, has: int, asked: int) -> str:
    return (
        f"{weights} has a head of {has} classes, num_classes asks for {asked}; leave out num_classes, or train a new "
        "head first"
    )


def _create(name: str, args: Mapping[str, Any], *, pretrained: bool = False) -> Any:
    try:
        return timm.create_model(name, pretrained=pretrained, **args)
    except OSError as error:
        raise CheckpointError(
            f"no weights for '{name}': the hub cannot be reached or does not have them ({_first_line(error)}); with "
            "the weights in a file, pass it as checkpoint"
        ) from error
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        given = f" with {dict(args)}" if args else ""
        raise CheckpointError(f"timm cannot make '{name}'{given}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _sizes(model: Any, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Head and image size of the weights, where they differ from the model's."""
    sizes: dict[str, Any] = {}
    head = _head_size(model, state)
    if head is not None and head != model.num_classes:
        sizes["num_classes"] = head
    stored, own = state.get("pos_embed"), getattr(model, "pos_embed", None)
    if stored is not None and own is not None and stored.shape[1] != own.shape[1]:
        num_patches = stored.shape[1] - (own.shape[1] - model.patch_embed.num_patches)
        rows = math.isqrt(max(num_patches, 0))
        if rows * rows == num_patches:
            sizes["img_size"] = tuple(rows * size for size in model.patch_embed.patch_size)
    return sizes


def _head_size(model: Any, state: Mapping[str, Tensor]) -> int | None:
    weight = state.get(f"{_classifiers(model)[0]}.weight")
    return None if weight is None else len(weight)


def _classifiers(model: Any) -> tuple[str, ...]:
    """Names of the model's heads; a distilled model has two."""
    names = model.pretrained_cfg.get("classifier") or "head"
    return (names,) if isinstance(names, str) else tuple(names)
