"""timm's hierarchical transformers: Swin, Swin V2 and Hiera. From stage to stage, tokens become fewer and wider."""

# B images [B, C, H, W], T tokens, D hidden dimension

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pathprune.models.blocks import (
    SWIN,
    SWIN_V2,
    SequentialBlock,
    as_grid,
    find_all,
    find_sequential,
)
from pathprune.models.seam import (
    AdaptedModel,
    AttentionArgs,
    AttentionSite,
    Block,
    NeuronSite,
    UnsupportedModelError,
    Way,
)


@dataclass(frozen=True)
class _WrappedBlock:
    """A sequential block that opens in its own way and closes like any other."""

    inner: SequentialBlock

    def close(self, m: Tensor, u: Tensor) -> Tensor:
        return self.inner.close(m, u)

    def residual_scale(self) -> Tensor | None:
        return self.inner.residual_scale()

    def attention_scale(self) -> Tensor | None:
        return self.inner.attention_scale()

    def build_site(self, index: int) -> NeuronSite:
        return self.inner.build_site(index)

    def build_attention_site(self, index: int) -> AttentionSite:
        return self.inner.build_attention_site(index)


@dataclass(frozen=True)
class _MergingBlock(_WrappedBlock):
    """The first block of a Swin stage: it merges neighbouring tokens when it opens."""

    downsample: nn.Module
    grid: tuple[int, int]  # grid of the tokens before they are merged

    def read(self, h: Tensor, tokens: Tensor | None) -> Tensor:
        return h

    def open(
        self, h: Tensor, attention_input: Tensor, tokens: Tensor | None, attention_args: AttentionArgs
    ) -> tuple[Tensor, Tensor]:
        stream, attention_input = (self.downsample(as_grid(x, self.grid)).flatten(1, 2) for x in (h, attention_input))
        return self.inner.open(stream, self.inner.read(attention_input, tokens), tokens, attention_args)


@dataclass(frozen=True)
class _Stages:
    """The common part of both families: the head pools over all tokens, the attention takes no further arguments."""

    model: Any
    readout: tuple[int, ...] = ()

    @property
    def attention_refusals(self) -> Mapping[Way, str]:
        return {}

    @property
    def num_classes(self) -> int:
        return int(self.model.num_classes)

    def attention_args(self, index: int, h: Tensor) -> AttentionArgs:
        return {}


@dataclass(frozen=True)
class _Swin(_Stages):
    """Swin: attention within shifted windows of a grid; tokens are flat between blocks; implements `Trunk`."""

    family: str = "timm SwinTransformer"

    @property
    def input_size(self) -> tuple[int, int, int] | None:
        embed = self.model.patch_embed
        return None if embed.img_size is None else (embed.proj.in_channels, *embed.img_size)

    def stem(self, images: Tensor) -> Tensor:
        h: Tensor = self.model.patch_embed(images).flatten(1, 2)
        return h

    def head(self, h: Tensor) -> Tensor:
        grid = self.model.layers[-1].output_resolution
        logits: Tensor = self.model.forward_head(self.model.norm(as_grid(h, grid)))
        return logits

    def find_blocks(self) -> tuple[Block, ...]:
        blocks: list[Block] = []
        for place, stage in enumerate(self.model.layers):
            for index, module in enumerate(stage.blocks):
                parts = SWIN_V2 if hasattr(module.attn, "logit_scale") else SWIN
                grid = tuple(module.input_resolution)
                block = find_sequential(module, f"layers.{place}.blocks.{index}", parts, grid=grid)
                if index == 0 and not isinstance(stage.downsample, nn.Identity):
                    blocks.append(_MergingBlock(block, stage.downsample, tuple(stage.input_resolution)))
                else:
                    blocks.append(block)
        return tuple(blocks)


@dataclass(frozen=True)
class _PoolingBlock(_WrappedBlock):
    """A Hiera block; the first of a stage pools its tokens and widens them."""

    def read(self, h: Tensor, tokens: Tensor | None) -> Tensor:
        return self.inner.read(h, tokens)

    def open(
        self, h: Tensor, attention_input: Tensor, tokens: Tensor | None, attention_args: AttentionArgs
    ) -> tuple[Tensor, Tensor]:
        block = self.inner.module
        if not block.do_expand:
            return self.inner.open(h, attention_input, tokens, attention_args)
        wide = h if block.proj is None else block.proj(attention_input)
        windows = wide.view(len(h), block.attn.q_stride, -1, wide.shape[-1])
        stream = torch.cat([windows.amax(1), windows.mean(1)], dim=-1) if block.proj is None else windows.amax(1)
        m = stream + block.drop_path1(block.ls1(block.attn(attention_input)))
        m = m if tokens is None else m[:, tokens]
        return m, self.inner.hidden(m)


@dataclass(frozen=True)
class _Hiera(_Stages):
    """Hiera: attention within mask units, whose tokens are neighbours after unrolling; implements `Trunk`."""

    family: str = "timm Hiera"

    @property
    def input_size(self) -> tuple[int, int, int] | None:
        height, width = (n * s for n, s in zip(self.model.tokens_spatial_shape, self.model.patch_stride, strict=True))
        return (int(self.model.in_chans), height, width)

    def stem(self, images: Tensor) -> Tensor:
        model = self.model
        h: Tensor = model.unroll(model._pos_embed(model.patch_embed(images)))
        return h

    def head(self, h: Tensor) -> Tensor:
        logits: Tensor = self.model.forward_head(h)
        return logits

    def find_blocks(self) -> tuple[Block, ...]:
        blocks = find_all((f"blocks.{index}", block) for index, block in enumerate(self.model.blocks))
        return tuple(_PoolingBlock(block) for block in blocks if isinstance(block, SequentialBlock))


def match(model: Any) -> AdaptedModel:
    """Adapt a Swin, Swin V2 or Hiera model, recognised by its structure.

    Raises `UnsupportedModelError` with the reason for any other model.
    """
    if all(hasattr(model, part) for part in ("patch_embed", "unroll", "reroll", "blocks", "forward_head")):
        if len(model.patch_stride) != 2:
            raise UnsupportedModelError("it is a Hiera for videos")
        return AdaptedModel.of(_Hiera(model))
    if all(hasattr(model, part) for part in ("patch_embed", "layers", "norm", "forward_head")) and all(
        hasattr(stage, "blocks")
        and hasattr(stage, "output_resolution")
        and all(hasattr(block, "_attn") and hasattr(block, "input_resolution") for block in stage.blocks)
        for stage in model.layers
    ):
        return AdaptedModel.of(_Swin(model))
    raise UnsupportedModelError("it has neither the stages of timm's Swin nor the mask units of its Hiera")
