"""The model that a recipe works on: loaded, adapted, on its device, with the objective that mining explains."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pathprune.keys import key_of
from pathprune.mining import Objective, ZeroShot, ZeroShotClassifier, resolve_objective
from pathprune.models.adapt import adapt
from pathprune.models.loading import LoadedModel, load_configured_model
from pathprune.models.seam import AdaptedModel
from pathprune.models.slicing import slice_head
from pathprune.recipe import Recipe

MODEL_VERSION = 1
"""Raised when results are computed differently, so that older versions' artifacts are not reused."""


@dataclass(frozen=True)
class RecipeModel:
    """A model as it meets images. `num_classes` and `class_names` are those of its classifier or zero-shot head."""

    loaded: LoadedModel
    adapted: AdaptedModel
    objective: Objective
    num_classes: int | None
    class_names: tuple[str, ...] | None
    head_spec: dict[str, str] | None  # identity of a zero-shot head

    @property
    def module(self) -> nn.Module:
        return self.adapted.model

    @property
    def data_config(self) -> Mapping[str, Any]:
        """Input size and transform, as `timm.data.create_transform` takes them."""
        return self.loaded.data_config

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        _, height, width = self.data_config["input_size"]
        return height, width

    @property
    def is_classifier(self) -> bool:
        """True if the model itself outputs class logits, which a loss on labels needs."""
        return self.adapted.num_classes > 0 and not isinstance(self.objective, ZeroShot)

    def compute_key(self) -> str:
        """Return the key of weights, architecture and transform."""
        architecture = self.loaded.architecture
        return key_of(
            weights=weights_key(self.module),
            architecture=[architecture.name, dict(architecture.args)],
            transform=dict(self.data_config),
            artifacts=MODEL_VERSION,
        )

    def classifier(self, module: nn.Module) -> nn.Module:
        """Return a classifier made of `module`, a variant of this model.

        Raises `ValueError` where neither a head nor a zero-shot head gives classes.
        """
        if isinstance(self.objective, ZeroShot):
            return ZeroShotClassifier(module, self.objective)
        if self.num_classes is None:
            raise ValueError(
                "the model has no classifier, so its accuracy cannot be measured; mine and prune it, or give it "
                "classes with mine.objective={name: zero-shot, head: FILE}"
            )
        return module

    def with_module(self, module: nn.Module) -> RecipeModel:
        """Return the same description of another module of this architecture, such as a pruned one."""
        device = next(self.module.parameters()).device
        return replace(self, adapted=adapt(module.to(device), check=False))

    def with_classes(self, classes: tuple[int, ...]) -> RecipeModel:
        """Return the model with a head sliced to `classes`."""
        loaded = slice_head(self.loaded, classes)
        return replace(self.with_module(loaded.model), loaded=loaded, num_classes=len(classes))


def open_model(recipe: Recipe, *, device: torch.device) -> RecipeModel:
    """Load the recipe's model onto `device`.

    Raises `ValueError` for a model that does not take RGB images or does not fit its zero-shot head.
    """
    loaded = load_configured_model(recipe.model)
    channels = loaded.data_config["input_size"][0]
    if channels != 3:
        raise ValueError(f"the model takes {channels} channels; only RGB images are read")
    adapted = adapt(loaded.model)
    config = recipe.mine.objective
    objective = resolve_objective(adapted.num_classes, None if config is None else config.build())
    num_classes, class_names, head_spec = adapted.num_classes or None, loaded.class_names, None
    if config is not None and isinstance(objective, ZeroShot):
        num_classes, class_names, head_spec = len(objective.text_CK), objective.class_names, config.spec()
        with torch.no_grad():  # notices a head of another tower now
            ZeroShotClassifier(loaded.model, objective)(torch.zeros(1, *loaded.data_config["input_size"]))
    model = RecipeModel(loaded, adapted, objective, num_classes, class_names, head_spec)
    return model.with_module(loaded.model.to(device))


def weights_key(module: nn.Module) -> str:
    """Return the key of a module's weights and buffers."""
    digest = hashlib.blake2b(digest_size=12)
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
