"""Loading of classifiers from timm's registry, a hub, a folder, a weights file or the package itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from timm.models import is_model
from torch import nn

from pathprune.models.adapt import adapt
from pathprune.models.architecture import Architecture, explain_unknown_name, read_class_names, read_data_config
from pathprune.models.checkpoint import load_pruned
from pathprune.models.config import ModelConfig, explain_missing_folder, is_path, to_folder
from pathprune.models.hub import fetch_config, fetch_if_pruned
from pathprune.models.pruned_config import CONFIG_FILE, is_pruned_folder
from pathprune.models.timm_load import load_timm
from pathprune.models.transformers_load import load_transformers
from pathprune.models.weights import CheckpointError, find_weights, read_weights

DEMO = "demo"
DEMO_FOLDER = Path(str(resources.files("pathprune"))) / "demo" / "model"

_TIMM_IN_TRANSFORMERS = "timm_wrapper"  # Transformers' model type for timm models; timm reads their config too


@dataclass(frozen=True)
class LoadedModel:
    """A classifier with its preprocessing, its class names and the architecture to build it again."""

    model: nn.Module
    data_config: dict[str, Any]  # arguments of timm.data.create_transform
    class_names: tuple[str, ...] | None
    architecture: Architecture
    source: str


def load_configured_model(config: ModelConfig) -> LoadedModel:
    """Load the model of a recipe; its `data_config` overrides the settings that come with the weights."""
    loaded = load_model(
        config.name,
        checkpoint=config.checkpoint,
        pretrained=config.pretrained,
        num_classes=config.num_classes,
        image_size=config.image_size,
        model_args=config.args,
    )
    return replace(loaded, data_config={**loaded.data_config, **config.data_config})


def load_model(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = True,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load a model on the CPU, in eval mode and float32.

    - `name`: a timm name, `hf-hub:owner/model`, `demo`, or a folder (a plain path or `local-dir:PATH`) that timm,
      Transformers, its Trainer or `save_pruned` wrote.
    - `checkpoint`: weights to load instead of those of the name: a `.safetensors`, `.pth`, `.pt` or original `.npz`
      file, or a folder with weights only, such as Accelerate's.
    - `pretrained`: False without a checkpoint gives random weights.
    - `num_classes`, `image_size`: by default those of the weights; position embeddings are resized. `num_classes=0`
      leaves the head out. A head of another size is an error, except that weights from a hub get a new, untrained head
      with a warning.
    - `model_args`: further arguments of `timm.create_model`, or keys of a Transformers config.

    Raises `CheckpointError`, a `ValueError` with a message of one line.
    """
    folder = _find_folder(name)
    weights = None if checkpoint is None else find_weights(Path(checkpoint).expanduser())
    args = dict(model_args or {})
    if num_classes is not None:
        args["num_classes"] = num_classes
    if image_size is not None:
        args["img_size"] = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if folder is not None and is_pruned_folder(folder):
        if checkpoint is not None:
            raise CheckpointError(
                f"{folder} is a pruned checkpoint with its own weights; remove checkpoint={checkpoint}"
            )
        return _describe(_load_pruned_folder(folder, args), str(folder))
    config_folder = folder or (fetch_config(name) if name.startswith("hf-hub:") else None)
    if config_folder is not None and _is_transformers(config_folder):
        source = folder or name.removeprefix("hf-hub:")
        model = load_transformers(
            source,
            state=None if weights is None else read_weights(weights),
            pretrained=pretrained,
            num_classes=num_classes,
            image_size=args.get("img_size"),
            model_args=model_args,
        )
        return _describe(model, str(weights or source))
    if folder is not None and pretrained:
        weights = weights or find_weights(folder)
    timm_name = name if folder is None else f"local-dir:{folder}"
    return _describe(load_timm(timm_name, args, weights=weights, pretrained=pretrained), str(weights or folder or name))


def _describe(model: nn.Module, source: str) -> LoadedModel:
    return LoadedModel(
        model=model.eval(),
        data_config=read_data_config(model),
        class_names=read_class_names(model),
        architecture=Architecture.of(model),
        source=source,
    )


def _find_folder(name: str) -> Path | None:
    """Return the folder that `name` means, or None for the name of a model.

    Raises `CheckpointError` if `name` is a path at which there is no folder.
    """
    if name == DEMO:
        if not DEMO_FOLDER.is_dir():
            raise CheckpointError(
                f"the demo model is missing from this installation ({DEMO_FOLDER}); reinstall pathprune"
            )
        return DEMO_FOLDER
    if name.startswith("hf-hub:"):
        return fetch_if_pruned(name)
    path = to_folder(name)
    if is_path(name) or (path.is_dir() and not is_model(name)):
        if not path.is_dir():
            raise CheckpointError(explain_missing_folder(name))
        return path
    return None


def _is_transformers(folder: Path) -> bool:
    """Return True if Transformers wrote the folder, False if timm did; raise `CheckpointError` if neither did."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        find_weights(folder)  # raises an error that names the folder's content
        raise CheckpointError(
            f"{folder} has no readable {CONFIG_FILE}, so the architecture of its weights is unknown; pass the model's "
            "timm name, and the folder as checkpoint"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} is not valid JSON: {error}") from error
    config = config if isinstance(config, dict) else {}
    if "model_type" in config and config["model_type"] != _TIMM_IN_TRANSFORMERS:
        return True
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        raise CheckpointError(
            f"{folder / CONFIG_FILE} names neither a timm architecture nor a Transformers model; pass a folder that "
            "timm, Transformers or pathprune saved"
        )
    if not is_model(architecture):
        raise CheckpointError(f"{folder / CONFIG_FILE}: {explain_unknown_name(architecture)}")
    return False


def _load_pruned_folder(folder: Path, args: Mapping[str, Any]) -> nn.Module:
    """Load a pruned checkpoint in float32; raise `CheckpointError` if `args` disagree with the saved model."""
    model = load_pruned(folder).float()
    adapted = adapt(model, check=False)
    own = {**Architecture.of(model).args, "num_classes": adapted.num_classes}
    if adapted.input_size is not None:
        own["img_size"] = adapted.input_size[1:]
    for key, value in args.items():
        if own.get(key) != value:
            raise CheckpointError(f"{folder} is a pruned model with {key}={own.get(key)}, which cannot become {value}")
    return model
