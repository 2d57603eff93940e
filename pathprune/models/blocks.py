"""Transformer blocks in two halves, around the hidden layer of their MLP: found by the names of their parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from pathprune.models.mlp import Mlp, find_mlp
from pathprune.models.seam import NeuronSite, Rows

Context = Mapping[str, Any]
"""What the attention takes beside the states, such as rotary positions."""


class Block(Protocol):
    """A block, or one MLP of several that a block has side by side; see `AdaptedModel` for the halves."""

    def read(self, h: Tensor, rows: Tensor | None) -> Tensor: ...

    def open(self, h: Tensor, read: Tensor, rows: Tensor | None, context: Context) -> tuple[Tensor, Tensor]: ...

    def close(self, m: Tensor, u: Tensor) -> Tensor: ...

    def residual_scale(self) -> Tensor | None: ...

    def site(self, index: int) -> NeuronSite: ...


@dataclass(frozen=True)
class _Layout:
    """Names of the parts of a block: `x + after(attn(norm(x)))` and then the same with the MLP.

    Parts before and after may be modules, parameters to multiply with, or None. A norm after makes it post-norm.
    """

    before_attn: str | None
    attn: str
    after_attn: tuple[str, ...]
    before_mlp: str | None
    mlp: str
    after_mlp: tuple[str, ...]

    @property
    def parts(self) -> set[str]:
        singles = (self.before_attn, self.attn, self.before_mlp, self.mlp)
        return {name for name in (*singles, *self.after_attn, *self.after_mlp) if name}


_LAYOUTS = (
    # timm VisionTransformer
    _Layout("norm1", "attn", ("ls1", "drop_path1"), "norm2", "mlp", ("ls2", "drop_path2")),
    # timm BEiT, EVA
    _Layout("norm1", "attn", ("gamma_1", "drop_path1"), "norm2", "mlp", ("gamma_2", "drop_path2")),
    # timm ResPostBlock, EvaBlockPostNorm
    _Layout(None, "attn", ("norm1", "drop_path1"), None, "mlp", ("norm2", "drop_path2")),
    # Transformers DINOv2, DINOv3
    _Layout("norm1", "attention", ("layer_scale1", "drop_path"), "norm2", "mlp", ("layer_scale2", "drop_path")),
    # Transformers ViT, DeiT
    _Layout("layernorm_before", "attention", ("dropout",), "layernorm_after", "mlp", ("dropout",)),
    # Transformers CLIP, SigLIP
    _Layout("layer_norm1", "self_attn", (), "layer_norm2", "mlp", ()),
)
SWIN = _Layout("norm1", "_attn", ("drop_path1",), "norm2", "mlp", ("drop_path2",))
SWIN_V2 = _Layout(None, "_attn", ("norm1", "drop_path1"), None, "mlp", ("norm2", "drop_path2"))


@dataclass(frozen=True)
class SequentialBlock:
    """Attention, then the MLP, each added to the stream."""

    module: Any
    layout: _Layout
    mlp: Mlp
    name: str
    grid: tuple[int, int] | None = None  # of the tokens, for an attention that wants them as [B, H, W, D]

    def read(self, h: Tensor, rows: Tensor | None) -> Tensor:
        x = self._before_attn(h)
        if not _is_plain(self._attn):
            return x
        qkv: Tensor = self._attn.qkv(x) if rows is None else _projected(self._attn, x, slice(1, 3))
        return qkv

    def open(self, h: Tensor, read: Tensor, rows: Tensor | None, context: Context) -> tuple[Tensor, Tensor]:
        h = h if rows is None else h[:, rows]
        if not _is_plain(self._attn):
            attended = self._attended(read, rows, context)
        elif rows is None:
            attended = _attended(self._attn, *read.chunk(3, dim=2))
        else:
            q = _projected(self._attn, self._before_attn(h), slice(0, 1))
            attended = _attended(self._attn, q, *read.chunk(2, dim=2))
        m = h + _applied(self.module, self.layout.after_attn, attended)
        return m, self.hidden(m)

    def hidden(self, m: Tensor) -> Tensor:
        """The MLP's hidden rows, given the stream that it is added to."""
        return self.mlp.hidden(_applied(self.module, (self.layout.before_mlp,), m))

    def close(self, m: Tensor, u: Tensor) -> Tensor:
        return m + _applied(self.module, self.layout.after_mlp, self.mlp.project(u))

    def residual_scale(self) -> Tensor | None:
        return _scale(self.mlp.down, (getattr(self.module, name) for name in self.layout.after_mlp))

    def site(self, index: int) -> NeuronSite:
        return self.mlp.site(f"{self.name}.{self.layout.mlp}", index)

    @property
    def _attn(self) -> Any:
        return getattr(self.module, self.layout.attn)

    def _before_attn(self, h: Tensor) -> Tensor:
        return _applied(self.module, (self.layout.before_attn,), h)

    def _attended(self, x: Tensor, rows: Tensor | None, context: Context) -> Tensor:
        attended = self._attn(x if self.grid is None else as_grid(x, self.grid), **context)
        attended = attended[0] if isinstance(attended, tuple) else attended  # Transformers gives the weights too
        attended = attended if self.grid is None else attended.flatten(1, 2)
        read: Tensor = attended if rows is None else attended[:, rows]
        return read


@dataclass(frozen=True)
class ParallelMlp:
    """One of the MLPs of timm's `ParallelThingsBlock`: parallel attentions, and then parallel MLPs.

    Between two MLPs of a block the state is the stream with what the MLPs so far have added, and, beside it in the last
    dimension, the stream that all of them read: `[B, T, 2 D]`.
    """

    module: Any
    mlp: Mlp
    name: str
    place: int
    last: bool

    def read(self, h: Tensor, rows: Tensor | None) -> Tensor:
        return h

    def open(self, h: Tensor, read: Tensor, rows: Tensor | None, context: Context) -> tuple[Tensor, Tensor]:
        if self.place == 0:
            stream = h + torch.stack([attn(read, **context) for attn in self.module.attns]).sum(0)
            h = torch.cat([stream, stream], dim=-1)
        m = h if rows is None else h[:, rows]
        return m, self.mlp.hidden(self.module.ffns[self.place].norm(m.chunk(2, dim=-1)[1]))

    def close(self, m: Tensor, u: Tensor) -> Tensor:
        stream, read = m.chunk(2, dim=-1)
        ffn = self.module.ffns[self.place]
        stream = stream + ffn.drop_path(ffn.ls(self.mlp.project(u)))
        return stream if self.last else torch.cat([stream, read], dim=-1)

    def residual_scale(self) -> Tensor | None:
        return None  # what it adds to is not what it reads

    def site(self, index: int) -> NeuronSite:
        return self.mlp.site(f"{self.name}.ffns.{self.place}.mlp", index)


@dataclass(frozen=True)
class FusedBlock:
    """timm's `ParallelScalingBlock`: attention and MLP side by side, with one layer for all their projections."""

    module: Any
    name: str

    def read(self, h: Tensor, rows: Tensor | None) -> Tensor:
        projected: Tensor = self.module.in_proj(self.module.in_norm(h))
        return projected

    def open(self, h: Tensor, read: Tensor, rows: Tensor | None, context: Context) -> tuple[Tensor, Tensor]:
        block = self.module
        num_images, num_tokens, _ = h.shape
        hidden, *qkv = torch.split(read, block.in_split, dim=-1)
        hidden = hidden if block.mlp_bias is None else hidden + block.mlp_bias
        q, k, v = (x.view(num_images, num_tokens, block.num_heads, block.head_dim) for x in qkv)
        q, k, v = (x.transpose(1, 2) for x in (block.q_norm(q), block.k_norm(k), v))
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        m = h + block.drop_path(block.ls(block.attn_out_proj(mixed)))
        u = block.mlp_drop(block.mlp_act(hidden))
        return (m, u) if rows is None else (m[:, rows], u[:, rows])

    def close(self, m: Tensor, u: Tensor) -> Tensor:
        h: Tensor = m + self.module.drop_path(self.module.ls(self.module.mlp_out_proj(u)))
        return h

    def residual_scale(self) -> Tensor | None:
        return _scale(self.module.mlp_out_proj, (self.module.ls,))

    def site(self, index: int) -> NeuronSite:
        block = self.module
        rows = (Rows(block.in_proj, fused=block),)
        return NeuronSite(f"{self.name}.mlp_out_proj", index, block.mlp_out_proj, rows, block.mlp_act)


def find_all(named_blocks: Iterable[tuple[str, Any]]) -> tuple[Block, ...] | str:
    """View every block, given by name; or say which is unlike the known ones, and how."""
    found: list[Block] = []
    for name, module in named_blocks:
        blocks = find_blocks(module, name)
        if isinstance(blocks, str):
            return f"{name} ({type(module).__name__}) {blocks}"
        found += blocks
    return tuple(found) if found else "it has no blocks"


def find_blocks(module: Any, name: str) -> tuple[Block, ...] | str:
    """View a block as one `Block` for each of its MLPs; otherwise say in a few words what differs."""
    if hasattr(module, "attns") and hasattr(module, "ffns"):
        mlps = [find_mlp(getattr(ffn, "mlp", ffn)) for ffn in module.ffns]
        found = [mlp for mlp in mlps if isinstance(mlp, Mlp)]
        if len(found) < len(mlps):
            return f"has a {next(mlp for mlp in mlps if isinstance(mlp, str))}"
        return tuple(ParallelMlp(module, mlp, name, i, last=i == len(found) - 1) for i, mlp in enumerate(found))
    if hasattr(module, "in_proj") and hasattr(module, "in_split"):
        if getattr(module, "mlp_out_proj", None) is None:
            return "has one output projection for attention and MLP together"
        return (FusedBlock(module, name),)
    for layout in _LAYOUTS:
        if all(hasattr(module, part) for part in layout.parts):
            return find_sequential(module, name, layout)
    return "is put together like none of the known blocks"


def find_sequential(
    module: Any, name: str, layout: _Layout, *, grid: tuple[int, int] | None = None
) -> tuple[SequentialBlock] | str:
    """View a block of a known layout; otherwise say in a few words what differs."""
    mlp = find_mlp(getattr(module, layout.mlp))
    return f"has a {mlp}" if isinstance(mlp, str) else (SequentialBlock(module, layout, mlp, name, grid),)


def as_grid(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens in their places: `[B, H W, D]` -> `[B, H, W, D]`."""
    return x.reshape(len(x), *grid, x.shape[-1])


def _applied(module: Any, names: Iterable[str | None], x: Tensor) -> Tensor:
    for name in names:
        part = getattr(module, name) if name else None
        if isinstance(part, nn.Parameter):
            x = part * x
        elif part is not None:
            x = part(x)
    return x


def _scale(down: nn.Linear, parts: Iterable[Any]) -> Tensor | None:
    """What the parts multiply the MLP's output by, `[D]`; None where they do something else to it."""
    scale_D = down.weight.detach().new_ones(down.out_features)
    for part in parts:
        gamma = part if isinstance(part, nn.Parameter) else getattr(part, "gamma", getattr(part, "lambda1", None))
        if isinstance(gamma, Tensor):
            scale_D = scale_D * gamma.detach()
        elif part is not None and next(part.parameters(), None) is not None:
            return None
    return scale_D


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
