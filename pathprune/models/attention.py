"""Attention that can be narrowed, recognised by its class.

The class matters, and not only the names of its parts: a class with the same parts may use positions differently. Other
classes are refused, and the MLPs beside them can still be pruned.
"""

# B images or windows, T tokens, D hidden dimension

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from pathprune.models.narrow_attention import (
    NarrowAttention,
    NarrowClipAttention,
    NarrowCosineAttention,
    NarrowDinov3Attention,
    NarrowPlainAttention,
    NarrowPooledAttention,
    NarrowRelativeAttention,
    NarrowRotaryAttention,
    NarrowTransformersAttention,
    NarrowWindowAttention,
    count_rows,
    group_mask_units,
)
from pathprune.models.seam import AttentionSite, HeadSizes, Projection, UnsupportedModelError, Way

_MODULES: Mapping[str, type[NarrowAttention]] = {
    "timm.layers.attention.Attention": NarrowPlainAttention,
    "timm.layers.attention.AttentionRope": NarrowRotaryAttention,
    "timm.models.eva.EvaAttention": NarrowRotaryAttention,
    "timm.models.beit.Attention": NarrowRelativeAttention,
    "timm.models.swin_transformer.WindowAttention": NarrowWindowAttention,
    "timm.models.swin_transformer_v2.WindowAttention": NarrowCosineAttention,
    "timm.models.hiera.MaskUnitAttention": NarrowPooledAttention,
    "transformers.models.vit.modeling_vit.ViTAttention": NarrowTransformersAttention,
    "transformers.models.deit.modeling_deit.DeiTAttention": NarrowTransformersAttention,
    "transformers.models.dinov2.modeling_dinov2.Dinov2Attention": NarrowTransformersAttention,
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersAttention": (
        NarrowTransformersAttention
    ),
    "transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTAttention": NarrowDinov3Attention,
    "transformers.models.clip.modeling_clip.CLIPAttention": NarrowClipAttention,
    "transformers.models.siglip.modeling_siglip.SiglipAttention": NarrowClipAttention,
}
"""This package's module for each class of a library."""

# classes whose forward assumes that the heads together are as wide as the hidden dimension
_FIXED_WIDTH = {
    "timm.models.eva.EvaAttention",
    "timm.models.beit.Attention",
    "timm.models.swin_transformer_v2.WindowAttention",
}
SUPPORTED_ATTENTION = (
    "attention can be narrowed in timm VisionTransformer, Beit, Eva, SwinTransformer, SwinTransformerV2 and Hiera, and "
    "in Transformers ViT, DeiT, DINOv2, DINOv3, CLIP and SigLIP"
)

ROTARY = "rotary positions turn pairs of them"

_NUM_HEADS = ("num_heads", "num_attention_heads", "heads")  # the libraries' names
_OUTS = ("proj", "o_proj", "out_proj")


def build_attention_site(parent: nn.Module, attribute: str, *, name: str, block: int) -> AttentionSite:
    """Return the site of the attention that `parent` holds as `attribute`; `name` is the attention's name in the model.

    Raises `UnsupportedModelError` with the reason if this attention cannot be narrowed in any way.
    """
    attention: Any = getattr(parent, attribute)
    if not isinstance(attention, NarrowAttention) and _get_class_name(attention) not in _MODULES:
        raise UnsupportedModelError(
            f"{name} is a {type(attention).__name__}, whose heads cannot be removed: {SUPPORTED_ATTENTION}"
        )
    num_key_heads = getattr(attention, "num_kv_heads", None)
    if num_key_heads not in (None, getattr(attention, "num_heads", None)):
        raise UnsupportedModelError(
            f"{name} shares {num_key_heads} heads of keys and values among {attention.num_heads} heads of queries, "
            "which cannot be removed"
        )
    out = next(each for each in _OUTS if hasattr(attention, each))
    down: nn.Linear = getattr(attention, out)
    projections = _find_projections(attention, down)
    layers = {down, *(each.layer for each in projections)}
    if any(type(layer) is not nn.Linear or is_parametrized(layer) for layer in layers):
        raise UnsupportedModelError(f"{name} has projections that are not plain nn.Linear layers")
    queries, keys, values = projections
    return AttentionSite(
        name=f"{name}.{out}",
        block=block,
        down=down,
        sizes=_read_sizes(attention, queries, values),
        queries=queries,
        keys=keys,
        values=values,
        gate=getattr(attention, "gate", None),
        attention=attention,
        parent=parent,
        attribute=attribute,
        refusals=_find_refusals(attention),
    )


def set_sizes(site: AttentionSite, sizes: HeadSizes) -> None:
    """Set the sizes that the attention of `site` stores itself, in place; its weights must have these sizes already.

    If the library's module cannot express the sizes, a module of this package takes over its parts.
    """
    attention: Any = site.attention
    if isinstance(attention, NarrowAttention):
        attention.sizes = sizes
        return
    name, (num_heads, dim, value_dim) = _get_class_name(attention), sizes
    if dim != value_dim or (name in _FIXED_WIDTH and num_heads * value_dim != site.down.out_features):
        setattr(site.parent, site.attribute, _MODULES[name](attention, sizes))
        return
    for attribute, value in list_size_attributes(sizes).items():
        if hasattr(attention, attribute):
            setattr(attention, attribute, value)


def list_size_attributes(sizes: HeadSizes) -> dict[str, int | float]:
    """Return the libraries' attributes for sizes, by name; queries, keys and values have the same head size."""
    num_heads, dim, _ = sizes
    names = dict.fromkeys((*_NUM_HEADS, "num_kv_heads"), num_heads)
    widths = dict.fromkeys(("attn_dim", "kv_dim", "dim_out"), num_heads * dim)
    return {**names, **widths, "head_dim": dim, "scale": dim**-0.5, "scaling": dim**-0.5}


def is_pooled(attention: Any) -> bool:
    """Return True if the attention max-pools its queries."""
    return getattr(attention, "q_stride", 1) > 1


def is_scaled(attention: Any) -> bool:
    """Return True if the logits are scaled by the head size, False if they are cosines."""
    return not hasattr(attention, "logit_scale")


def group_tokens(attention: Any, x: Tensor) -> Tensor:
    """Group the tokens of the attention's input that attend to each other: `[B, T, D]` -> `[…, T, D]`."""
    return group_mask_units(attention, x) if getattr(attention, "use_mask_unit_attn", False) else x


def read_projection(attention: nn.Module, projection: Projection) -> tuple[Tensor, Tensor | None]:
    """Return the weight and the bias of a projection."""
    rows = slice(projection.start, projection.start + projection.size)
    layer = projection.layer
    if projection.bias is None:
        return layer.weight[rows], None if layer.bias is None else layer.bias[rows]
    # the keys' bias is a buffer of zeros, since softmax ignores a constant added to all keys
    return layer.weight[rows], dict(attention.named_parameters(recurse=False)).get(projection.bias)


def list_head_parameters(attention: Any) -> list[tuple[nn.Module, str, int]]:
    """Return the parameters with one entry per head besides the projections: module, name, dimension of the heads."""
    found: list[tuple[nn.Module, str, int]] = []
    if getattr(attention, "relative_position_bias_table", None) is not None:
        found.append((attention, "relative_position_bias_table", 1))
    if hasattr(attention, "logit_scale"):
        found += [(attention, "logit_scale", 0), (attention.cpb_mlp[-1], "weight", 0)]
    return found


def _find_projections(attention: Any, down: nn.Linear) -> tuple[Projection, Projection, Projection]:
    """Return the projections of queries, keys and values, packed in one layer or separate."""
    packed = getattr(attention, "qkv", None)
    if packed is None:
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        queries, keys, values = (Projection(layer, 0, layer.out_features) for layer in layers)
        return queries, keys, values
    has_own_bias = getattr(attention, "q_bias", None) is not None
    query_rows = (packed.out_features - down.in_features) // 2
    starts = (0, query_rows, 2 * query_rows)
    sizes = (query_rows, query_rows, down.in_features)
    biases = ("q_bias", "k_bias", "v_bias") if has_own_bias else (None, None, None)
    queries, keys, values = (Projection(packed, *each) for each in zip(starts, sizes, biases, strict=True))
    return queries, keys, values


def _read_sizes(attention: Any, queries: Projection, values: Projection) -> HeadSizes:
    if isinstance(attention, NarrowAttention):
        assert count_rows(attention.sizes)[::2] == (queries.size, values.size)
        return attention.sizes
    num_heads = next(getattr(attention, name) for name in _NUM_HEADS if hasattr(attention, name))
    return HeadSizes(num_heads, queries.size // num_heads, values.size // num_heads)


def _find_refusals(attention: Any) -> Mapping[Way, str]:
    refusals: dict[Way, str] = {}
    kind = _MODULES.get(_get_class_name(attention), type(attention))
    if _has_part(attention, "norm"):
        refusals["heads"] = refusals["values"] = "a norm over the channels of all heads follows them"
    if _has_part(attention, "gate"):
        refusals.setdefault("values", "a gate multiplies each of them")
    if _has_part(attention, "q_norm") or _has_part(attention, "k_norm"):
        refusals["queries"] = "norms follow them"
    elif not is_scaled(attention):
        refusals["queries"] = "their cosines are taken"
    elif is_pooled(attention):
        refusals["queries"] = "the queries are max-pooled"
    elif kind.is_rotary:
        refusals["queries"] = ROTARY
    return refusals


def _has_part(attention: Any, name: str) -> bool:
    part = getattr(attention, name, None)
    return part is not None and not isinstance(part, nn.Identity)


def _get_class_name(attention: object) -> str:
    kind = type(attention)
    return f"{kind.__module__}.{kind.__qualname__}"
