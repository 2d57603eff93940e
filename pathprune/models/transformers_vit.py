"""Transformers' Vision Transformers: ViT, DeiT, DINOv2 (with registers too), DINOv3, the towers of CLIP and SigLIP.

Its models answer with objects of several tensors; `TransformersModel` takes the logits out. Transformers itself is not
imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pathprune.models.blocks import find_all
from pathprune.models.grid import Grid, check_grid, grid_of
from pathprune.models.seam import AdaptedModel, AttentionArgs, Block, UnsupportedModelError

_ANSWERS = ("logits", "image_embeds", "pooler_output")  # the first that there is
_LAYERS = ("layers", "encoder.layer", "encoder.layers", "model.layer")
_NORMS = ("layernorm", "norm", "post_layernorm")


class TransformersModel(nn.Module):
    """A Transformers vision model, `model`, as images `[B, C, H, W]` -> logits, or the embedding where it has no head.

    `data_config` is its input as `timm.data.create_transform` takes it, where that is known.
    """

    def __init__(self, model: nn.Module, *, data_config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.model, self.data_config = model, data_config

    def forward(self, images: Tensor) -> Tensor:
        answer = self.model(pixel_values=images)
        for name in _ANSWERS:
            output: Tensor | None = getattr(answer, name, None)
            if output is not None:
                return output
        raise UnsupportedModelError(
            f"{type(self.model).__name__} gives neither logits nor a pooled embedding; take the class with a head, "
            "such as …ForImageClassification"
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """The model as its library knows it, whose names its weights have there."""
    return model.model if isinstance(model, TransformersModel) else model


def is_bare(model: Any) -> bool:
    """Whether `model` is one of Transformers' own, outside `TransformersModel`."""
    return any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__)


@dataclass(frozen=True)
class _Head:
    """How a head reads the tokens `[B, T, D]`: which of them, after the tower's last norm or before, and to what."""

    readout: tuple[int, ...]
    read: Callable[[Any, Any, Tensor], Tensor]  # of the model, its tower and the tokens
    normed: bool = True


@dataclass(frozen=True)
class _Tower:
    """The part of a model that has embeddings and layers, and the head; satisfies `Trunk`."""

    model: TransformersModel
    path: str  # from the model to the tower, within Transformers' model
    layers: str  # from the tower to the list of its layers
    norm: str
    how: _Head

    @property
    def _tower(self) -> Any:
        return self.model.model.get_submodule(self.path)

    @property
    def family(self) -> str:
        return f"Transformers {type(self.model.model).__name__}"

    @property
    def readout(self) -> tuple[int, ...]:
        return self.how.readout

    @property
    def num_classes(self) -> int:
        classifier: Any = classifier_of(self.model.model)
        return 0 if classifier is None else int(classifier.out_features)

    @property
    def input_size(self) -> tuple[int, int, int] | None:
        return input_size_of(self.model)

    def stem(self, images: Tensor) -> Tensor:
        tower = self._tower
        if hasattr(tower, "rope_embeddings"):
            height, width = _pair(tower.config.patch_size)
            check_grid((images.shape[2] // height, images.shape[3] // width), own=self._own_grid())
        h: Tensor = tower.embeddings(images)
        if hasattr(tower, "pre_layrnorm"):  # Transformers' spelling
            h = tower.pre_layrnorm(h)
        return h

    def attention_args(self, index: int, h: Tensor) -> AttentionArgs:
        tower = self._tower
        if not hasattr(tower, "rope_embeddings"):
            return {}
        rows, columns = grid_of(h.shape[1] - _num_prefix(tower), own=self._own_grid())
        height, width = _pair(tower.config.patch_size)
        # of images it reads the size, type and device only
        images = h.new_empty(()).expand(1, 1, rows * height, columns * width)
        return {"position_embeddings": tower.rope_embeddings(images)}

    def head(self, h: Tensor) -> Tensor:
        tower = self._tower
        return self.how.read(self.model.model, tower, getattr(tower, self.norm)(h) if self.how.normed else h)

    def find_blocks(self) -> tuple[Block, ...]:
        name = ".".join(part for part in ("model", self.path, self.layers) if part)
        layers: Any = self.model.get_submodule(name)
        return find_all((f"{name}.{index}", layer) for index, layer in enumerate(layers))

    def _own_grid(self) -> Grid:
        config = self._tower.config
        (height, width), (rows, columns) = _pair(config.image_size), _pair(config.patch_size)
        return (height // rows, width // columns)


def input_size_of(model: TransformersModel) -> tuple[int, int, int]:
    """Channels, height and width of the images that the config of the model, or of its vision tower, says."""
    whole: Any = model.model
    config = getattr(whole.config, "vision_config", whole.config)
    height, width = _pair(config.image_size)
    return (int(config.num_channels), height, width)


def match(model: Any) -> AdaptedModel:
    """Adapt a Transformers model, bare or in a `TransformersModel`, recognised by its structure.

    Raises `UnsupportedModelError` with the reason for any other model.
    """
    if is_bare(model):
        model = TransformersModel(model)
    if not isinstance(model, TransformersModel):
        raise UnsupportedModelError("it is not a Transformers model")
    whole: Any = model.model
    if hasattr(whole, "timm_model"):
        raise UnsupportedModelError("it wraps a timm model: pass its `timm_model`")
    if hasattr(whole, "text_model"):
        raise UnsupportedModelError("it has a text tower: pass its `vision_model` alone")
    for path, tower in (("", whole), *whole.named_children()):
        layers = next((each for each in _LAYERS if _has(tower, each)), None)
        norm = next((each for each in _NORMS if hasattr(tower, each)), None)
        if layers and norm and hasattr(tower, "embeddings"):
            return AdaptedModel.of(_Tower(model, path, layers, norm, _head_of(whole, tower)))
    raise UnsupportedModelError(
        "it lacks the embeddings, layers and norm of Transformers' ViT, DeiT, DINOv2, DINOv3, CLIP or SigLIP"
    )


def _head_of(whole: Any, tower: Any) -> _Head:
    classifier = classifier_of(whole)
    if hasattr(whole, "distillation_classifier"):
        return _Head((0, 1), _two_tokens)
    if classifier is not None and hasattr(tower, "pre_layrnorm"):  # CLIP's norm is for its embedding only
        return _Head((), _mean, normed=False)
    if classifier is not None and hasattr(tower.embeddings, "cls_token"):
        wide = classifier.in_features == 2 * tower.config.hidden_size  # DINOv2
        return _Head((), _token_and_mean) if wide else _Head((0,), _token)
    if classifier is not None:
        return _Head((), _mean)
    if hasattr(tower, "head"):
        return _Head((), _attention_pooling)
    return _Head((0,), _embedding)


def classifier_of(whole: Any) -> nn.Linear | None:
    """The linear head of a Transformers model, the class token's where there are two; None where there is none."""
    classifier = getattr(whole, "classifier", getattr(whole, "cls_classifier", None))
    return classifier if isinstance(classifier, nn.Linear) else None


def _token(whole: Any, tower: Any, x: Tensor) -> Tensor:
    logits: Tensor = whole.classifier(x[:, 0])
    return logits


def _two_tokens(whole: Any, tower: Any, x: Tensor) -> Tensor:
    logits: Tensor = (whole.cls_classifier(x[:, 0]) + whole.distillation_classifier(x[:, 1])) / 2
    return logits


def _mean(whole: Any, tower: Any, x: Tensor) -> Tensor:
    logits: Tensor = whole.classifier(x[:, _num_prefix(tower) :].mean(1))
    return logits


def _token_and_mean(whole: Any, tower: Any, x: Tensor) -> Tensor:
    logits: Tensor = whole.classifier(torch.cat([x[:, 0], x[:, _num_prefix(tower) :].mean(1)], dim=1))
    return logits


def _attention_pooling(whole: Any, tower: Any, x: Tensor) -> Tensor:
    embedding: Tensor = tower.head(x)
    return embedding


def _embedding(whole: Any, tower: Any, x: Tensor) -> Tensor:
    pooler = getattr(tower, "pooler", None)
    embedding: Tensor = x[:, 0] if pooler is None else pooler(x)
    return whole.visual_projection(embedding) if hasattr(whole, "visual_projection") else embedding


def _num_prefix(tower: Any) -> int:
    """Tokens that are no patches: class token, distillation token, registers."""
    embeddings = tower.embeddings
    single = sum(hasattr(embeddings, name) for name in ("cls_token", "class_embedding", "distillation_token"))
    return single + (embeddings.register_tokens.shape[1] if hasattr(embeddings, "register_tokens") else 0)


def _has(module: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(module, name):
            return False
        module = getattr(module, name)
    return isinstance(module, nn.ModuleList)


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
