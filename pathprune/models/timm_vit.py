"""timm's `VisionTransformer` with pre-norm sequential blocks: ViT, DeiT (also distilled), DeiT-3, DINOv2 …"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from pathprune.models.seam import NeuronSite

_STEM_PARTS = ("patch_embed", "_pos_embed", "patch_drop", "norm_pre")
_BLOCK_PARTS = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")
_MLP_PARTS = ("fc1", "act", "drop1", "norm", "fc2", "drop2")


@dataclass(frozen=True)
class TimmViT:
    """A timm `VisionTransformer`, in steps; satisfies `AdaptedModel`."""

    model: Any  # nn.Module; which parts it has is what `match` finds out
    sites: tuple[NeuronSite, ...]
    readout: tuple[int, ...]
    num_classes: int
    family: str = "timm VisionTransformer"

    def stem(self, images: Tensor) -> Tensor:
        model = self.model
        h: Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        return h

    def read_block(self, index: int, h: Tensor, rows: Tensor | None = None) -> Tensor:
        block = self.model.blocks[index]
        x: Tensor = block.norm1(h)
        if not _is_plain(block.attn):
            return x
        return block.attn.qkv(x) if rows is None else _projected(block.attn, x, slice(1, 3))

    def open_block(
        self, index: int, h: Tensor, rows: Tensor | None = None, *, read: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        block, mlp = self.model.blocks[index], self.model.blocks[index].mlp
        read = self.read_block(index, h, rows) if read is None else read
        if rows is not None:
            h = h[:, rows]
        if not _is_plain(block.attn):
            attended = block.attn(read) if rows is None else block.attn(read)[:, rows]
        elif rows is None:
            attended = _attended(block.attn, *read.chunk(3, dim=2))
        else:
            attended = _attended(block.attn, _projected(block.attn, block.norm1(h), slice(0, 1)), *read.chunk(2, dim=2))
        m = h + block.drop_path1(block.ls1(attended))
        return m, mlp.norm(mlp.drop1(mlp.act(mlp.fc1(block.norm2(m)))))

    def close_block(self, index: int, m: Tensor, u: Tensor) -> Tensor:
        block = self.model.blocks[index]
        h: Tensor = m + block.drop_path2(block.ls2(block.mlp.drop2(block.mlp.fc2(u))))
        return h

    def residual_scale(self, index: int) -> Tensor | None:
        block = self.model.blocks[index]
        if isinstance(block.ls2, nn.Identity):
            weight: Tensor = block.mlp.fc2.weight
            return weight.new_ones(len(weight))
        gamma: Tensor | None = getattr(block.ls2, "gamma", None)
        return None if gamma is None else gamma.detach()

    def head(self, h: Tensor) -> Tensor:
        logits: Tensor = self.model.forward_head(self.model.norm(h))
        return logits

    def refresh(self) -> TimmViT:
        return replace(self, sites=_sites(self.model))


def match(model: Any) -> TimmViT | str:
    """Adapt `model` if it has this family's structure; otherwise say in a few words what differs."""
    missing = [part for part in (*_STEM_PARTS, "blocks", "norm", "forward_head") if not hasattr(model, part)]
    if missing:
        return f"no {', '.join(missing)} as in timm's VisionTransformer"
    if len(model.blocks) == 0:
        return "it has no blocks"
    for index, block in enumerate(model.blocks):
        difference = _block_difference(block)
        if difference:
            return f"blocks.{index} ({type(block).__name__}) {difference}"
    return TimmViT(model, _sites(model), _readout(model), num_classes=int(model.num_classes))


def _block_difference(block: Any) -> str | None:
    missing = [part for part in _BLOCK_PARTS if not hasattr(block, part)]
    if missing:
        return f"has no {', '.join(missing)}, as a pre-norm sequential block has"
    absent = [part for part in _MLP_PARTS if not hasattr(block.mlp, part)]
    if absent:
        return f"has a {type(block.mlp).__name__} with no {', '.join(absent)}"
    if not (isinstance(block.mlp.fc1, nn.Linear) and isinstance(block.mlp.fc2, nn.Linear)):
        return f"has a {type(block.mlp).__name__} whose fc1 and fc2 are not plain nn.Linear layers"
    if block.mlp.fc1.out_features != block.mlp.fc2.in_features:
        return f"has a gated {type(block.mlp).__name__} (fc1 wider than fc2's input)"
    if not isinstance(block.mlp.norm, nn.Identity):
        return f"has a {type(block.mlp).__name__} with a norm between fc1 and fc2"
    return None


def _is_plain(attn: Any) -> bool:
    """Whether it is timm's plain attention, in eval mode."""
    plain = type(attn) is Attention and type(attn.qkv) is nn.Linear and getattr(attn, "gate", None) is None
    return plain and not attn.training


def _projected(attn: Any, x: Tensor, parts: slice) -> Tensor:
    """Some of the query, key and value projections, in this order, of a plain attention."""
    size = attn.qkv.out_features // 3
    rows = slice(parts.start * size, parts.stop * size)
    return linear(x, attn.qkv.weight[rows], None if attn.qkv.bias is None else attn.qkv.bias[rows])


def _attended(attn: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A plain attention in eval mode, given its projections."""
    q, k, v = (x.view(*x.shape[:2], attn.num_heads, -1).transpose(1, 2) for x in (q, k, v))
    mixed = scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v, scale=attn.scale)
    attended: Tensor = attn.proj(attn.norm(mixed.transpose(1, 2).flatten(2)))
    return attended


def _readout(model: Any) -> tuple[int, ...]:
    """Token rows that the head reads, class token first; empty where it pools over patch tokens."""
    if getattr(model, "global_pool", "token") != "token" or getattr(model, "cls_token", None) is None:
        return ()
    return (0, 1) if getattr(model, "dist_token", None) is not None else (0,)


def _sites(model: Any) -> tuple[NeuronSite, ...]:
    return tuple(
        NeuronSite(name=f"blocks.{index}.mlp.fc2", block=index, down=block.mlp.fc2)
        for index, block in enumerate(model.blocks)
    )
