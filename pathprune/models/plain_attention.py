"""timm's plain attention in two steps, so that some tokens may attend to all."""

# B images, T tokens, D hidden dimension

from __future__ import annotations

from typing import Any

from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from pathprune.models.narrow_attention import NarrowPlainAttention


def is_plain(attn: Any) -> bool:
    """Return True if `attn` is timm's plain attention in eval mode, or its narrow form."""
    is_known = type(attn) in (Attention, NarrowPlainAttention)
    return is_known and type(attn.qkv) is nn.Linear and getattr(attn, "gate", None) is None and not attn.training


def count_rows(attn: Any) -> list[int]:
    """Return the numbers of output rows for queries, keys and values of a plain attention."""
    queries = (attn.qkv.out_features - attn.proj.in_features) // 2
    return [queries, queries, attn.proj.in_features]


def project(attn: Any, x: Tensor, parts: slice) -> Tensor:
    """Compute consecutive parts of the query, key and value projections of a plain attention."""
    sizes = count_rows(attn)
    rows = slice(sum(sizes[: parts.start]), sum(sizes[: parts.stop]))
    return linear(x, attn.qkv.weight[rows], None if attn.qkv.bias is None else attn.qkv.bias[rows])


def attend(attn: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run a plain attention in eval mode on its projections."""
    q, k, v = (x.view(*x.shape[:2], attn.num_heads, -1).transpose(1, 2) for x in (q, k, v))
    values = scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v, scale=attn.scale)
    attn_output: Tensor = attn.proj(attn.norm(values.transpose(1, 2).flatten(2)))
    return attn_output
