"""Transformer blocks split at the hidden layer of their MLP, recognised by the names of their parts."""

# B images, T tokens, H W grid of tokens, D hidden dimension

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pathprune.models.attention import build_attention_site
from pathprune.models.mlp import Mlp, find_mlp
from pathprune.models.plain_attention import attend, count_rows, is_plain, project
from pathprune.models.seam import AttentionArgs, AttentionSite, Block, NeuronSite, UnsupportedModelError, UpProjection


@dataclass(frozen=True)
class BlockParts:
    """Names of the parts of a block: `x + after(attn(before(x)))`, then the same with the MLP.

    A part before or after may be a module, a parameter to multiply by, or None. A norm after the MLP makes the block
    post-norm.
    """

    before_attn: str | None
    attn: str
    after_attn: tuple[str, ...]
    before_mlp: str | None
    mlp: str
    after_mlp: tuple[str, ...]

    @property
    def names(self) -> set[str]:
        singles = (self.before_attn, self.attn, self.before_mlp, self.mlp)
        return {name for name in (*singles, *self.after_attn, *self.after_mlp) if name}


_KNOWN_PARTS = (
    # timm VisionTransformer
    BlockParts("norm1", "attn", ("ls1", "drop_path1"), "norm2", "mlp", ("ls2", "drop_path2")),
    # timm BEiT, EVA
    BlockParts("norm1", "attn", ("gamma_1", "drop_path1"), "norm2", "mlp", ("gamma_2", "drop_path2")),
    # timm ResPostBlock, EvaBlockPostNorm
    BlockParts(None, "attn", ("norm1", "drop_path1"), None, "mlp", ("norm2", "drop_path2")),
    # Transformers DINOv2, DINOv3
    BlockParts("norm1", "attention", ("layer_scale1", "drop_path"), "norm2", "mlp", ("layer_scale2", "drop_path")),
    # Transformers ViT, DeiT
    BlockParts("layernorm_before", "attention", ("dropout",), "layernorm_after", "mlp", ("dropout",)),
    # Transformers CLIP, SigLIP
    BlockParts("layer_norm1", "self_attn", (), "layer_norm2", "mlp", ()),
)
SWIN = BlockParts("norm1", "_attn", ("drop_path1",), "norm2", "mlp", ("drop_path2",))
SWIN_V2 = BlockParts(None, "_attn", ("norm1", "drop_path1"), None, "mlp", ("norm2", "drop_path2"))


@dataclass(frozen=True)
class SequentialBlock:
    """Attention, then the MLP, each added to the residual stream."""

    module: Any
    parts: BlockParts
    mlp: Mlp
    name: str
    grid: tuple[int, int] | None = None  # grid of the tokens, if the attention takes `[B, H, W, D]`

    def read(self, h: Tensor, tokens: Tensor | None) -> Tensor:
        x = self._before_attn(h)
        if not is_plain(self._attn):
            return x
        qkv: Tensor = self._attn.qkv(x) if tokens is None else project(self._attn, x, slice(1, 3))
        return qkv

    def open(
        self, h: Tensor, attention_input: Tensor, tokens: Tensor | None, attention_args: AttentionArgs
    ) -> tuple[Tensor, Tensor]:
        h = h if tokens is None else h[:, tokens]
        if not is_plain(self._attn):
            attn_output = self._attend(attention_input, tokens, attention_args)
        elif tokens is None:
            attn_output = attend(self._attn, *torch.split(attention_input, count_rows(self._attn), dim=2))
        else:
            q = project(self._attn, self._before_attn(h), slice(0, 1))
            attn_output = attend(self._attn, q, *torch.split(attention_input, count_rows(self._attn)[1:], dim=2))
        m = h + _apply(self.module, self.parts.after_attn, attn_output)
        return m, self.hidden(m)

    def hidden(self, m: Tensor) -> Tensor:
        """Compute the MLP's hidden activations from the state `m` before the MLP."""
        return self.mlp.hidden(_apply(self.module, (self.parts.before_mlp,), m))

    def close(self, m: Tensor, u: Tensor) -> Tensor:
        return m + _apply(self.module, self.parts.after_mlp, self.mlp.project(u))

    def residual_scale(self) -> Tensor | None:
        return _multiply_scales(self.mlp.down, (getattr(self.module, name) for name in self.parts.after_mlp))

    def attention_scale(self) -> Tensor | None:
        return _multiply_scales(self.mlp.down, (getattr(self.module, name) for name in self.parts.after_attn))

    def build_site(self, index: int) -> NeuronSite:
        return self.mlp.build_site(f"{self.name}.{self.parts.mlp}", index)

    def build_attention_site(self, index: int) -> AttentionSite:
        attribute = self.parts.attn.removeprefix("_")  # Swin's `_attn` calls its `attn` on windows
        return build_attention_site(self.module, attribute, name=f"{self.name}.{attribute}", block=index)

    @property
    def _attn(self) -> Any:
        return getattr(self.module, self.parts.attn)

    def _before_attn(self, h: Tensor) -> Tensor:
        return _apply(self.module, (self.parts.before_attn,), h)

    def _attend(self, x: Tensor, tokens: Tensor | None, attention_args: AttentionArgs) -> Tensor:
        output = self._attn(x if self.grid is None else as_grid(x, self.grid), **attention_args)
        if isinstance(output, tuple):
            output, *_ = output  # Transformers also returns the attention weights
        if self.grid is not None:
            output = output.flatten(1, 2)
        restricted: Tensor = output if tokens is None else output[:, tokens]
        return restricted


@dataclass(frozen=True)
class ParallelMlp:
    """One MLP of timm's `ParallelThingsBlock`, which runs parallel attentions and then parallel MLPs.

    All MLPs of the block read the same residual stream. Between two of them the state therefore holds two streams,
    concatenated to `[B, T, 2 D]`: the one with the outputs added so far, and the one that the MLPs read.
    """

    module: Any
    mlp: Mlp
    name: str
    place: int
    is_last: bool

    def read(self, h: Tensor, tokens: Tensor | None) -> Tensor:
        return h

    def open(
        self, h: Tensor, attention_input: Tensor, tokens: Tensor | None, attention_args: AttentionArgs
    ) -> tuple[Tensor, Tensor]:
        if self.place == 0:
            stream = h + torch.stack([attn(attention_input, **attention_args) for attn in self.module.attns]).sum(0)
            h = torch.cat([stream, stream], dim=-1)
        m = h if tokens is None else h[:, tokens]
        return m, self.mlp.hidden(self.module.ffns[self.place].norm(m.chunk(2, dim=-1)[1]))

    def close(self, m: Tensor, u: Tensor) -> Tensor:
        stream, mlp_input = m.chunk(2, dim=-1)
        ffn = self.module.ffns[self.place]
        stream = stream + ffn.drop_path(ffn.ls(self.mlp.project(u)))
        return stream if self.is_last else torch.cat([stream, mlp_input], dim=-1)

    def residual_scale(self) -> Tensor | None:
        return None  # the MLP reads another stream than the one it adds to

    def attention_scale(self) -> Tensor | None:
        return _multiply_scales(self.mlp.down, (self.module.attns[self.place].ls,))

    def build_attention_site(self, index: int) -> AttentionSite:
        name = f"{self.name}.attns.{self.place}.attn"  # timm builds as many attentions as MLPs
        return build_attention_site(self.module.attns[self.place], "attn", name=name, block=index)

    def build_site(self, index: int) -> NeuronSite:
        return self.mlp.build_site(f"{self.name}.ffns.{self.place}.mlp", index)


@dataclass(frozen=True)
class FusedBlock:
    """timm's `ParallelScalingBlock`: attention and MLP in parallel, with one layer for all their input projections."""

    module: Any
    name: str

    def read(self, h: Tensor, tokens: Tensor | None) -> Tensor:
        projections: Tensor = self.module.in_proj(self.module.in_norm(h))
        return projections

    def open(
        self, h: Tensor, attention_input: Tensor, tokens: Tensor | None, attention_args: AttentionArgs
    ) -> tuple[Tensor, Tensor]:
        block = self.module
        num_images, num_tokens, _ = h.shape
        hidden, *qkv = torch.split(attention_input, block.in_split, dim=-1)
        hidden = hidden if block.mlp_bias is None else hidden + block.mlp_bias
        q, k, v = (x.view(num_images, num_tokens, block.num_heads, block.head_dim) for x in qkv)
        q, k, v = (x.transpose(1, 2) for x in (block.q_norm(q), block.k_norm(k), v))
        values = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        m = h + block.drop_path(block.ls(block.attn_out_proj(values)))
        u = block.mlp_drop(block.mlp_act(hidden))
        return (m, u) if tokens is None else (m[:, tokens], u[:, tokens])

    def close(self, m: Tensor, u: Tensor) -> Tensor:
        h: Tensor = m + self.module.drop_path(self.module.ls(self.module.mlp_out_proj(u)))
        return h

    def residual_scale(self) -> Tensor | None:
        return _multiply_scales(self.module.mlp_out_proj, (self.module.ls,))

    def attention_scale(self) -> Tensor | None:
        return self.residual_scale()

    def build_attention_site(self, index: int) -> AttentionSite:
        raise UnsupportedModelError(f"{self.name} computes attention and MLP in one layer")

    def build_site(self, index: int) -> NeuronSite:
        block = self.module
        ups = (UpProjection(block.in_proj, fused=block),)
        return NeuronSite(f"{self.name}.mlp_out_proj", index, block.mlp_out_proj, ups, block.mlp_act)


def find_all(named_blocks: Iterable[tuple[str, Any]]) -> tuple[Block, ...]:
    """Recognise every block, given with its name in the model.

    Raises `UnsupportedModelError` that names the first block of unknown structure.
    """
    return tuple(block for name, module in named_blocks for block in find_blocks(module, name))


def find_blocks(module: Any, name: str) -> tuple[Block, ...]:
    """Recognise a block and return one `Block` for each of its MLPs."""
    with _name_in_errors(name, module):
        if hasattr(module, "attns") and hasattr(module, "ffns"):
            mlps = [find_mlp(getattr(ffn, "mlp", ffn)) for ffn in module.ffns]
            return tuple(ParallelMlp(module, mlp, name, i, is_last=i == len(mlps) - 1) for i, mlp in enumerate(mlps))
        if hasattr(module, "in_proj") and hasattr(module, "in_split"):
            if getattr(module, "mlp_out_proj", None) is None:
                raise UnsupportedModelError("has one output projection for attention and MLP together")
            return (FusedBlock(module, name),)
        for parts in _KNOWN_PARTS:
            if all(hasattr(module, part) for part in parts.names):
                return (SequentialBlock(module, parts, find_mlp(getattr(module, parts.mlp)), name),)
        raise UnsupportedModelError("matches none of the known blocks")


def find_sequential(module: Any, name: str, parts: BlockParts, *, grid: tuple[int, int]) -> SequentialBlock:
    """Recognise a block that has the given parts and attends on a grid of tokens."""
    with _name_in_errors(name, module):
        return SequentialBlock(module, parts, find_mlp(getattr(module, parts.mlp)), name, grid)


@contextmanager
def _name_in_errors(name: str, module: Any) -> Iterator[None]:
    try:
        yield
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{name} ({type(module).__name__}) {error}") from error


def as_grid(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Arrange tokens in their grid: `[B, H W, D]` -> `[B, H, W, D]`."""
    return x.reshape(len(x), *grid, x.shape[-1])


def _apply(module: Any, names: Iterable[str | None], x: Tensor) -> Tensor:
    for name in names:
        part = getattr(module, name) if name else None
        if isinstance(part, nn.Parameter):
            x = part * x
        elif part is not None:
            x = part(x)
    return x


def _multiply_scales(down: nn.Linear, parts: Iterable[Any]) -> Tensor | None:
    """Return the factors `[D]` by which the parts after an MLP scale its output; None if they do more than scale."""
    scale_D = down.weight.detach().new_ones(down.out_features)
    for part in parts:
        gamma = part if isinstance(part, nn.Parameter) else getattr(part, "gamma", getattr(part, "lambda1", None))
        if isinstance(gamma, Tensor):
            scale_D = scale_D * gamma.detach()
        elif part is not None and next(part.parameters(), None) is not None:
            return None
    return scale_D
