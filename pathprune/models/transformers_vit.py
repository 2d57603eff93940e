"""Transformers' Vision Transformers: ViT, DeiT, DINOv2 (also with registers), DINOv3, towers of CLIP and SigLIP.

Transformers models return objects with several tensors; `TransformersModel` returns the logits. Transformers itself is
not imported here.
"""

# B images [B, C, H, W], T tokens, D hidden dimension

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pathprune.models.blocks import find_all
from pathprune.models.grid import Grid, check_grid, find_grid
from pathprune.models.seam import AdaptedModel, AttentionArgs, Block, UnsupportedModelError, Way

_OUTPUTS = ("logits", "image_embeds", "pooler_output")  # by preference
_LAYERS = ("layers", "encoder.layer", "encoder.layers", "model.layer")
_NORMS = ("layernorm", "norm", "post_layernorm")


class TransformersModel(nn.Module):
    """A wrapper of a Transformers vision model: images `[B, C, H, W]` -> logits, or an embedding if it has no head.

    `data_config` holds arguments of `timm.data.create_transform`; None if the preprocessing is unknown.
    """

    def __init__(self, model: nn.Module, *, data_config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.model, self.data_config = model, data_config

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.model(pixel_values=images)
        for name in _OUTPUTS:
            output: Tensor | None = getattr(outputs, name, None)
            if output is not None:
                return output
        raise UnsupportedModelError(
            f"{type(self.model).__name__} returns neither logits nor a pooled embedding; use its class with a head, "
            "such as …ForImageClassification"
        )


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model as its library defines it, with the library's names for its weights."""
    return model.model if isinstance(model, TransformersModel) else model


def is_bare(model: Any) -> bool:
    """Return True if `model` is a Transformers model that is not wrapped in `TransformersModel`."""
    return any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__)


@dataclass(frozen=True)
class _Head:
    """A head that reads the tokens of a tower.

    `read` takes the Transformers model, its tower and the tokens `[B, T, D]`.
    """

    readout: tuple[int, ...]
    read: Callable[[Any, Any, Tensor], Tensor]
    applies_norm: bool = True  # the tower's last norm goes before the head


@dataclass(frozen=True)
class _Tower:
    """The vision tower of a model and its head; implements `Trunk`."""

    model: TransformersModel
    path: str  # name of the tower in the Transformers model
    layers: str  # name of the list of layers in the tower
    norm: str
    tower_head: _Head

    @property
    def _tower(self) -> Any:
        return self.model.model.get_submodule(self.path)

    @property
    def family(self) -> str:
        return f"Transformers {type(self.model.model).__name__}"

    @property
    def readout(self) -> tuple[int, ...]:
        return self.tower_head.readout

    @property
    def num_classes(self) -> int:
        classifier = find_classifier(self.model.model)
        return 0 if classifier is None else classifier.out_features

    @property
    def input_size(self) -> tuple[int, int, int] | None:
        return read_input_size(self.model)

    @property
    def attention_refusals(self) -> Mapping[Way, str]:
        return {}

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
        rows, columns = find_grid(h.shape[1] - _count_prefix(tower), own=self._own_grid())
        height, width = _pair(tower.config.patch_size)
        # rope_embeddings reads only the size, dtype and device of the images
        images = h.new_empty(()).expand(1, 1, rows * height, columns * width)
        return {"position_embeddings": tower.rope_embeddings(images)}

    def head(self, h: Tensor) -> Tensor:
        tower = self._tower
        h = getattr(tower, self.norm)(h) if self.tower_head.applies_norm else h
        return self.tower_head.read(self.model.model, tower, h)

    def find_blocks(self) -> tuple[Block, ...]:
        name = ".".join(part for part in ("model", self.path, self.layers) if part)
        layers: Any = self.model.get_submodule(name)
        return find_all((f"{name}.{index}", layer) for index, layer in enumerate(layers))

    def _own_grid(self) -> Grid:
        config = self._tower.config
        (height, width), (rows, columns) = _pair(config.image_size), _pair(config.patch_size)
        return (height // rows, width // columns)


def read_input_size(model: TransformersModel) -> tuple[int, int, int]:
    """Return channels, height and width of the images from the config of the model or of its vision tower."""
    hf_model: Any = model.model
    config = getattr(hf_model.config, "vision_config", hf_model.config)
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
    hf_model: Any = model.model
    if hasattr(hf_model, "timm_model"):
        raise UnsupportedModelError("it wraps a timm model: pass its `timm_model`")
    if hasattr(hf_model, "text_model"):
        raise UnsupportedModelError("it has a text tower: pass its `vision_model` alone")
    for path, tower in (("", hf_model), *hf_model.named_children()):
        layers = next((name for name in _LAYERS if _has_layers(tower, name)), None)
        norm = next((name for name in _NORMS if hasattr(tower, name)), None)
        if layers and norm and hasattr(tower, "embeddings"):
            return AdaptedModel.of(_Tower(model, path, layers, norm, _find_head(hf_model, tower)))
    raise UnsupportedModelError(
        "it lacks the embeddings, layers and norm of Transformers' ViT, DeiT, DINOv2, DINOv3, CLIP or SigLIP"
    )


def find_classifier(hf_model: Any) -> nn.Linear | None:
    """Return the linear head of a Transformers model, of its class token if there are two; None if there is none."""
    classifier = getattr(hf_model, "classifier", getattr(hf_model, "cls_classifier", None))
    return classifier if isinstance(classifier, nn.Linear) else None


def _find_head(hf_model: Any, tower: Any) -> _Head:
    classifier = find_classifier(hf_model)
    if hasattr(hf_model, "distillation_classifier"):
        return _Head((0, 1), _classify_two_tokens)
    if classifier is not None and hasattr(tower, "pre_layrnorm"):  # CLIP's norm is for its embedding only
        return _Head((), _classify_mean, applies_norm=False)
    if classifier is not None and hasattr(tower.embeddings, "cls_token"):
        is_dinov2 = classifier.in_features == 2 * tower.config.hidden_size
        return _Head((), _classify_token_and_mean) if is_dinov2 else _Head((0,), _classify_token)
    if classifier is not None:
        return _Head((), _classify_mean)
    if hasattr(tower, "head"):
        return _Head((), _pool_by_attention)
    return _Head((0,), _embed_token)


def _classify_token(hf_model: Any, tower: Any, x: Tensor) -> Tensor:
    logits: Tensor = hf_model.classifier(x[:, 0])
    return logits


def _classify_two_tokens(hf_model: Any, tower: Any, x: Tensor) -> Tensor:
    logits: Tensor = (hf_model.cls_classifier(x[:, 0]) + hf_model.distillation_classifier(x[:, 1])) / 2
    return logits


def _classify_mean(hf_model: Any, tower: Any, x: Tensor) -> Tensor:
    logits: Tensor = hf_model.classifier(x[:, _count_prefix(tower) :].mean(1))
    return logits


def _classify_token_and_mean(hf_model: Any, tower: Any, x: Tensor) -> Tensor:
    logits: Tensor = hf_model.classifier(torch.cat([x[:, 0], x[:, _count_prefix(tower) :].mean(1)], dim=1))
    return logits


def _pool_by_attention(hf_model: Any, tower: Any, x: Tensor) -> Tensor:
    embedding: Tensor = tower.head(x)
    return embedding


def _embed_token(hf_model: Any, tower: Any, x: Tensor) -> Tensor:
    pooler = getattr(tower, "pooler", None)
    embedding: Tensor = x[:, 0] if pooler is None else pooler(x)
    return hf_model.visual_projection(embedding) if hasattr(hf_model, "visual_projection") else embedding


def _count_prefix(tower: Any) -> int:
    """Count the prefix tokens: class token, distillation token, registers."""
    embeddings = tower.embeddings
    single = sum(hasattr(embeddings, name) for name in ("cls_token", "class_embedding", "distillation_token"))
    return single + (embeddings.register_tokens.shape[1] if hasattr(embeddings, "register_tokens") else 0)


def _has_layers(module: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(module, name):
            return False
        module = getattr(module, name)
    return isinstance(module, nn.ModuleList)


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
