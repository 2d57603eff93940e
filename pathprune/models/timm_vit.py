"""timm's columnar Vision Transformers: `VisionTransformer` (ViT, DeiT, DINOv2, CLIP …), `Beit` and `Eva` (also DINOv3).

They share the names of their parts. They differ in their position embeddings and in the arguments of their attention.
"""

# B images [B, C, H, W], T tokens, D hidden dimension

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathprune.models.attention import ROTARY
from pathprune.models.blocks import find_all
from pathprune.models.grid import check_grid, find_grid
from pathprune.models.seam import AdaptedModel, AttentionArgs, Block, UnsupportedModelError, Way


@dataclass(frozen=True)
class _Columnar:
    """A `VisionTransformer`, and the common parts of the other families; implements `Trunk`."""

    model: Any  # an nn.Module with the parts that `match` looks for
    family: str = "timm VisionTransformer"

    @property
    def num_classes(self) -> int:
        return int(self.model.num_classes)

    @property
    def input_size(self) -> tuple[int, int, int] | None:
        embed = self.model.patch_embed
        size, projection = getattr(embed, "img_size", None), getattr(embed, "proj", None)
        if size is None or projection is None:
            return None
        return (int(getattr(self.model, "in_chans", projection.in_channels)), int(size[0]), int(size[1]))

    @property
    def readout(self) -> tuple[int, ...]:
        """Positions of the tokens that the head reads, class token first; empty if it pools over other tokens."""
        model = self.model
        if getattr(model, "global_pool", "token") != "token" or getattr(model, "attn_pool", None) is not None:
            return ()
        return (0, 1) if getattr(model, "dist_token", None) is not None else (0,)

    @property
    def attention_refusals(self) -> Mapping[Way, str]:
        return {}

    def stem(self, images: Tensor) -> Tensor:
        model = self.model
        h: Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        return h

    def attention_args(self, index: int, h: Tensor) -> AttentionArgs:
        return {}

    def head(self, h: Tensor) -> Tensor:
        logits: Tensor = self.model.forward_head(self.model.norm(h))
        return logits

    def find_blocks(self) -> tuple[Block, ...]:
        return find_all((f"blocks.{index}", block) for index, block in enumerate(self.model.blocks))


@dataclass(frozen=True)
class _Beit(_Columnar):
    """A model with relative positions: a table for each block, or one that all blocks share."""

    family: str = "timm Beit"

    @property
    def attention_refusals(self) -> Mapping[Way, str]:
        return {} if self.model.rel_pos_bias is None else {"heads": "all blocks share the biases of their positions"}

    def stem(self, images: Tensor) -> Tensor:
        model = self.model
        patches = model.patch_embed(images)
        tokens = torch.cat((model.cls_token.expand(len(patches), -1, -1), patches), dim=1)
        h: Tensor = model.pos_drop(tokens if model.pos_embed is None else tokens + model.pos_embed)
        return h

    def attention_args(self, index: int, h: Tensor) -> AttentionArgs:
        shared = self.model.rel_pos_bias
        return {} if shared is None else {"shared_rel_pos_bias": shared()}


@dataclass(frozen=True)
class _Eva(_Columnar):
    """A model with rotary positions, computed from the grid of patches."""

    family: str = "timm Eva"

    @property
    def attention_refusals(self) -> Mapping[Way, str]:
        if self.model.rope is None:
            return {}
        return {
            "queries": ROTARY,
            **({"heads": "each has rotary positions of its own"} if self.model.rope_mixed else {}),
        }

    def stem(self, images: Tensor) -> Tensor:
        model = self.model
        patches = model.patch_embed(images)
        if model.dynamic_img_size:
            check_grid((patches.shape[1], patches.shape[2]), own=tuple(model.patch_embed.grid_size))
        h: Tensor = model.norm_pre(model._pos_embed(patches)[0])
        return h

    def attention_args(self, index: int, h: Tensor) -> AttentionArgs:
        rope = self.model.rope
        if rope is None:
            return {}
        if self.model.dynamic_img_size:
            own = tuple(self.model.patch_embed.grid_size)
            positions = rope.get_embed(shape=find_grid(h.shape[1] - self.model.num_prefix_tokens, own=own))
        elif hasattr(rope, "feat_shape"):
            positions = rope.get_embed()
        else:
            positions = rope.get_embed(shape=self.model.patch_embed.grid_size)
        return {"rope": positions[index] if self.model.rope_mixed else positions}


_REQUIRED_PARTS = ("patch_embed", "blocks", "norm", "forward_head", "num_classes")


def match(model: Any) -> AdaptedModel:
    """Adapt a VisionTransformer, Beit or Eva model, recognised by its structure.

    Raises `UnsupportedModelError` with the reason for any other model.
    """
    missing = [part for part in _REQUIRED_PARTS if not hasattr(model, part)]
    if missing:
        raise UnsupportedModelError(f"it has no {', '.join(missing)} as in timm's Vision Transformers")
    if hasattr(model, "rel_pos_bias") and hasattr(model, "pos_drop"):
        return AdaptedModel.of(_Beit(model))
    if hasattr(model, "rope") and hasattr(model, "_pos_embed"):
        return AdaptedModel.of(_Eva(model))
    if all(hasattr(model, part) for part in ("_pos_embed", "patch_drop", "norm_pre")):
        return AdaptedModel.of(_Columnar(model))
    raise UnsupportedModelError("it has blocks but not the position embedding of timm's VisionTransformer, Beit or Eva")
