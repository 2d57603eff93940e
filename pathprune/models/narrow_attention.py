"""Attention modules for head sizes that the libraries' own modules cannot express.

Each module takes over the parts of a library's attention under their names, so that names of weights do not change. Its
`forward` takes the same arguments and gives the same result as the library's, for any number of heads and with head
sizes of values that differ from those of queries and keys.
"""

# B images or windows, T tokens, H heads, E channels of a head, D hidden dimension, … any leading dimensions

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional

from pathprune.models.seam import HeadSizes


class NarrowAttention(nn.Module):
    """The parts of `attention` under their names, with head sizes of their own; subclasses add positions."""

    out: ClassVar[str] = "proj"  # name of the output projection
    is_rotary: ClassVar[bool] = False  # positions rotate the queries and keys in every model

    qkv: nn.Linear
    q_bias: Tensor
    k_bias: Tensor
    v_bias: Tensor
    relative_position_bias_table: Tensor
    relative_position_index: Tensor

    def __init__(self, attention: nn.Module, sizes: HeadSizes) -> None:
        super().__init__()
        self.sizes = sizes
        for name, child in attention.named_children():
            self.add_module(name, child)
        for name, parameter in attention.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        stored = attention.state_dict(keep_vars=True).keys()
        for name, buffer in attention.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name in stored)
        self.train(attention.training)

    @property
    def num_heads(self) -> int:
        return self.sizes.num_heads

    @property
    def scale(self) -> float:
        """Return the scale of the logits, torch's default."""
        return 1 / math.sqrt(self.sizes.query_dim)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values of all heads from the attention's input: `[…, T, D]` -> `[…, T, H E]`."""
        if getattr(self, "qkv", None) is None:
            queries, keys, values = (getattr(self, name)(x) for name in ("q_proj", "k_proj", "v_proj"))
            return queries, keys, values
        if getattr(self, "q_bias", None) is None:
            qkv = self.qkv(x)
        else:
            qkv = functional.linear(x, self.qkv.weight, torch.cat([self.q_bias, self.k_bias, self.v_bias]))
        queries, keys, values = qkv.split(count_rows(self.sizes), dim=-1)
        return queries, keys, values

    def _split_heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute queries, keys and values by head, `[…, H, T, E]` each, with norms applied."""
        q, k, v = (part.reshape(*part.shape[:-1], self.num_heads, -1).transpose(-3, -2) for part in self.split(x))
        return self._apply_part("q_norm", q), self._apply_part("k_norm", k), v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """Mix the values: `[…, H, T, E]` each -> `[…, T, H E]`."""
        drop = getattr(self, "attn_drop", None)
        dropout_p = drop.p if drop is not None and self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, **options)
        return mixed.transpose(-3, -2).flatten(-2)

    def _project(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Compute the attention's output from the mixed values and its input `x`."""
        mixed = self._apply_part("norm", mixed)
        gate = getattr(self, "gate", None)
        if gate is not None:
            mixed = mixed * gate(x).sigmoid()
        output: Tensor = getattr(self, self.out)(mixed)
        return self._apply_part("proj_drop", output)

    def _apply_part(self, name: str, x: Tensor) -> Tensor:
        part = getattr(self, name, None)
        applied: Tensor = x if part is None else part(x)
        return applied


class NarrowPlainAttention(NarrowAttention):
    """timm's `Attention`, without positions."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        q, k, v = self._split_heads(x)
        return self._project(self._attend(q, k, v, attn_mask=attn_mask, is_causal=is_causal), x)


class NarrowRotaryAttention(NarrowAttention):
    """timm's `EvaAttention` and `AttentionRope`: rotary positions of all tokens but the prefix tokens."""

    def __init__(self, attention: Any, sizes: HeadSizes) -> None:
        super().__init__(attention, sizes)
        self.num_prefix_tokens = attention.num_prefix_tokens
        self.rotate_half = attention.rotate_half

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        q, k, v = self._split_heads(x)
        if rope is not None:
            q, k = (self._rotate(part, rope).type_as(v) for part in (q, k))
        return self._project(self._attend(q, k, v, attn_mask=attn_mask, is_causal=is_causal), x)

    def _rotate(self, x: Tensor, rope: Tensor) -> Tensor:
        prefix, patches = x[..., : self.num_prefix_tokens, :], x[..., self.num_prefix_tokens :, :]
        return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=self.rotate_half)], dim=-2)


class NarrowRelativeAttention(NarrowAttention):
    """timm's attention of BEiT: a bias for every relative position, of the block or shared by all blocks."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        q, k, v = self._split_heads(x)
        bias = shared_rel_pos_bias
        if getattr(self, "relative_position_bias_table", None) is not None:
            own = look_up_bias(self.relative_position_bias_table, self.relative_position_index)
            bias = own if bias is None else own + bias
        return self._project(self._attend(q, k, v, attn_mask=bias), x)


class NarrowWindowAttention(NarrowAttention):
    """timm's attention of Swin: windows of tokens, with a bias for every relative position."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self._split_heads(x)
        bias = look_up_bias(self.relative_position_bias_table, self.relative_position_index)
        return self._project(self._attend(q, k, v, attn_mask=add_window_mask(bias, mask, len(x))), x)


class NarrowCosineAttention(NarrowAttention):
    """timm's attention of Swin V2: cosine similarities, with a bias that an MLP computes from relative positions."""

    logit_scale: Tensor
    cpb_mlp: nn.Sequential
    relative_coords_table: Tensor

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self._split_heads(x)
        # as in timm: logits are at most 100 times the cosine
        scale = self.logit_scale.clamp(max=math.log(100.0)).exp()
        q, k = functional.normalize(q, dim=-1) * scale, functional.normalize(k, dim=-1)
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, -2)
        bias = 16 * look_up_bias(table, self.relative_position_index).sigmoid()
        return self._project(self._attend(q, k, v, attn_mask=add_window_mask(bias, mask, len(x)), scale=1.0), x)


class NarrowPooledAttention(NarrowAttention):
    """timm's attention of Hiera: within mask units or over all tokens, with queries that may be max-pooled."""

    def __init__(self, attention: Any, sizes: HeadSizes) -> None:
        super().__init__(attention, sizes)
        self.q_stride, self.window_size = attention.q_stride, attention.window_size
        self.use_mask_unit_attn = attention.use_mask_unit_attn

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = super().split(x)
        if not self.use_mask_unit_attn:
            return queries, keys, values
        return group_mask_units(self, queries), group_mask_units(self, keys), group_mask_units(self, values)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._split_heads(x)
        if self.q_stride > 1:
            q = q.reshape(*q.shape[:-2], self.q_stride, -1, q.shape[-1]).amax(-3)
        mixed = self._attend(q.contiguous(), k.contiguous(), v.contiguous())
        if self.use_mask_unit_attn:
            mixed = mixed.transpose(1, 2).flatten(1, 2)
        return self._project(mixed, x)


class NarrowTransformersAttention(NarrowAttention):
    """Transformers' attention of ViT, DeiT and DINOv2."""

    out = "o_proj"

    def __init__(self, attention: Any, sizes: HeadSizes) -> None:
        super().__init__(attention, sizes)
        dropout = attention.attention_dropout if hasattr(attention, "attention_dropout") else attention.dropout
        self.attn_drop = nn.Dropout(dropout)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Return the output, and None in place of the attention's weights."""
        q, k, v = self._split_heads(hidden_states)
        if position_embeddings is not None:
            q, k = (rotate(part, *position_embeddings) for part in (q, k))
        return self._project(self._attend(q, k, v, attn_mask=attention_mask), hidden_states), None


class NarrowDinov3Attention(NarrowTransformersAttention):
    """Transformers' attention of DINOv3, with rotary positions."""

    is_rotary = True


class NarrowClipAttention(NarrowTransformersAttention):
    """Transformers' attention of CLIP and SigLIP."""

    out = "out_proj"


def count_rows(sizes: HeadSizes) -> tuple[int, int, int]:
    """Return the numbers of output rows for the queries, keys and values of all heads."""
    queries = sizes.num_heads * sizes.query_dim
    return queries, queries, sizes.num_heads * sizes.value_dim


def look_up_bias(table: Tensor, index: Tensor) -> Tensor:
    """Look up the bias of every pair of tokens: table `[·, H]`, index `[T, T]` -> `[1, H, T, T]`."""
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).contiguous()[None]


def add_window_mask(bias: Tensor, mask: Tensor | None, num_windows: int) -> Tensor:
    """Add the mask of shifted windows: bias `[1, H, T, T]`, mask `[windows of an image, T, T]` -> `[B, H, T, T]`."""
    if mask is None:
        return bias
    return (bias + mask[:, None]).repeat(num_windows // len(mask), 1, 1, 1)


def group_mask_units(attention: Any, x: Tensor) -> Tensor:
    """Group Hiera's tokens by mask unit: `[B, T, D]` -> `[B, units, tokens of a unit, D]`."""
    num_units = x.shape[1] // (attention.q_stride * attention.window_size)
    return x.reshape(len(x), -1, num_units, x.shape[-1]).transpose(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary positions of Transformers' DINOv3 to `[…, T, E]`; prefix tokens come first and have none."""
    num_prefix = x.shape[-2] - cos.shape[-2]
    prefix, patches = x[..., :num_prefix, :], x[..., num_prefix:, :]
    first, second = patches.chunk(2, dim=-1)
    return torch.cat([prefix, patches * cos + torch.cat([-second, first], dim=-1) * sin], dim=-2)
