"""The model seam: a model's neurons, and its forward pass split around them.

The rest of the package sees a model through `AdaptedModel`. Architecture names appear in `pathprune.models` only.
"""

# B images [B, C, H, W], T tokens, D hidden dimension, W_l neurons of block l's site, K classes

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor, nn

AttentionArgs = Mapping[str, Any]
"""Keyword arguments that a block's attention takes besides the states, such as rotary position embeddings."""

SiteKind = Literal["mlp", "attention"]
Way = Literal["heads", "values", "queries"]
"""A way to narrow attention: fewer heads, fewer channels of the values, fewer channels of the queries and keys."""


class UnsupportedModelError(ValueError):
    """A model whose structure pathprune cannot mine and prune."""


@dataclass(frozen=True)
class UpProjection:
    """Consecutive output rows of `layer`, one per neuron, starting at row `start`.

    A packed gated MLP computes gate and value in one layer, so a site has two of these in the same layer. In timm's
    `ParallelScalingBlock` the layer also holds the attention's projections. That block is `fused`: it stores the sizes
    of the parts and the MLP's bias itself.
    """

    layer: nn.Linear
    start: int = 0
    fused: nn.Module | None = None


@dataclass(frozen=True)
class NeuronSite:
    """One MLP hidden layer: neuron `j` is input column `j` of the down-projection `down` (weight `[D, W_l]`).

    The hidden activations are `norm(act(up))`. In a gated MLP they are `norm(act(gate) * up)`, and `ups` holds the gate
    first, then the value.
    """

    kind: ClassVar[SiteKind] = "mlp"

    name: str
    block: int
    down: nn.Linear
    ups: tuple[UpProjection, ...] = ()
    act: nn.Module | None = None
    norm: nn.Module | None = None  # normalises over the neurons, so pruning changes its output

    @property
    def width(self) -> int:
        return self.down.in_features


class HeadSizes(NamedTuple):
    """Number of heads, and channels per head: of queries and keys, and of values."""

    num_heads: int
    query_dim: int
    value_dim: int


@dataclass(frozen=True)
class Projection:
    """Consecutive output rows of `layer`, from row `start`, that compute the queries, keys or values of all heads.

    `bias` names the parameter or buffer of the attention that holds their bias; None if `layer` holds it or has none.
    """

    layer: nn.Linear
    start: int
    size: int
    bias: str | None = None


@dataclass(frozen=True)
class AttentionSite:
    """The heads of one block's attention.

    Channel `j` of head `h` is input column `h * sizes.value_dim + j` of the output projection `down` (weight
    `[D, W]`). The columns of a head form a group. `refusals` gives the reason for each way of narrowing that this
    attention does not allow.
    """

    kind: ClassVar[SiteKind] = "attention"

    name: str
    block: int
    down: nn.Linear
    sizes: HeadSizes
    queries: Projection
    keys: Projection
    values: Projection
    gate: nn.Linear | None  # output row `j` gates channel `j`
    attention: nn.Module
    parent: nn.Module  # holds the attention as the attribute `attribute`
    attribute: str
    refusals: Mapping[Way, str] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return self.down.in_features

    @property
    def groups(self) -> tuple[range, ...]:
        """Return the columns of each head."""
        dim = self.sizes.value_dim
        return tuple(range(head * dim, (head + 1) * dim) for head in range(self.sizes.num_heads))

    def check(self, way: Way) -> None:
        """Raise `UnsupportedModelError`, naming what is possible, if this attention cannot be narrowed in this way."""
        if way in self.refusals:
            allowed = [_WAY_NAMES[each] for each in _WAY_NAMES if each not in self.refusals]
            raise UnsupportedModelError(
                f"{self.name}: {_WAY_NAMES[way]} cannot be removed, since {self.refusals[way]}; remove "
                f"{' or '.join(allowed) or 'MLP neurons only'} instead"
            )


_WAY_NAMES: Mapping[Way, str] = {
    "heads": "heads",
    "values": "channels of the values",
    "queries": "channels of the queries and keys",
}


class Block(Protocol):
    """One block of a model, or one of several parallel MLPs of a block. `AdaptedModel` documents the methods."""

    def read(self, h: Tensor, tokens: Tensor | None) -> Tensor: ...

    def open(
        self, h: Tensor, attention_input: Tensor, tokens: Tensor | None, attention_args: AttentionArgs
    ) -> tuple[Tensor, Tensor]: ...

    def close(self, m: Tensor, u: Tensor) -> Tensor: ...

    def residual_scale(self) -> Tensor | None: ...

    def attention_scale(self) -> Tensor | None: ...

    def build_site(self, index: int) -> NeuronSite: ...

    def build_attention_site(self, index: int) -> AttentionSite:
        """Return the site of the block's attention; raise `UnsupportedModelError` if it cannot be narrowed."""


class Trunk(Protocol):
    """The parts of a model outside its blocks, one implementation per model family."""

    @property
    def model(self) -> Any: ...

    @property
    def family(self) -> str: ...

    @property
    def readout(self) -> tuple[int, ...]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def input_size(self) -> tuple[int, int, int] | None: ...

    @property
    def attention_refusals(self) -> Mapping[Way, str]:
        """Return the ways in which no attention of the model can be narrowed, with the reasons."""

    def stem(self, images: Tensor) -> Tensor: ...

    def attention_args(self, index: int, h: Tensor) -> AttentionArgs:
        """Return the arguments of the attention in block `index` for the states `h`."""

    def head(self, h: Tensor) -> Tensor: ...

    def find_blocks(self) -> tuple[Block, ...]:
        """Return the model's blocks in order; raise `UnsupportedModelError` for a block of unknown structure."""


@dataclass(frozen=True)
class AdaptedModel:
    """A model as a stem, blocks that are split at the hidden layer of their MLP, and a head.

    `head(run_from(0, stem(images)))` equals `model(images)`. Shapes: images `[B, C, H, W]`, states `h` and `m`
    `[B, T, D]`, hidden activations `u` `[B, T, W_l]`, logits `[B, K]`. Fields are read from the model once; `refresh`
    reads them again.
    """

    model: nn.Module
    family: str
    sites: tuple[NeuronSite, ...]  # one per block
    attention_sites: tuple[AttentionSite, ...]  # one per block, or none if the attention cannot be narrowed
    attention_refusal: str | None  # why there are none
    readout: tuple[int, ...]  # positions of the tokens that the head reads; empty if it pools over all tokens
    num_classes: int  # 0 without a classifier
    input_size: tuple[int, int, int] | None  # channels, height, width of the model's images; None if unknown
    _trunk: Trunk = field(repr=False)
    _blocks: tuple[Block, ...] = field(repr=False)

    @classmethod
    def of(cls, trunk: Trunk) -> AdaptedModel:
        """Adapt the model of `trunk`; raise `UnsupportedModelError` if it has no blocks or unknown ones."""
        blocks = trunk.find_blocks()
        if not blocks:
            raise UnsupportedModelError("it has no blocks")
        attention_sites, attention_refusal = _build_attention_sites(trunk, blocks)
        return cls(
            model=trunk.model,
            family=trunk.family,
            sites=tuple(block.build_site(index) for index, block in enumerate(blocks)),
            attention_sites=attention_sites,
            attention_refusal=attention_refusal,
            readout=trunk.readout,
            num_classes=trunk.num_classes,
            input_size=trunk.input_size,
            _trunk=trunk,
            _blocks=blocks,
        )

    def stem(self, images: Tensor) -> Tensor:
        """Embed images: return the state that enters block 0."""
        return self._trunk.stem(images)

    def read_block(self, index: int, h: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return the attention input of block `index`, computed for each token by itself: `[B, T, ·]`.

        Token `t` of the result depends on token `t` of `h` alone. Pass the result to `open_block` with the same
        `tokens`.
        """
        return self._blocks[index].read(h, tokens)

    def open_block(
        self, index: int, h: Tensor, tokens: Tensor | None = None, *, attention_input: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run block `index` up to the hidden layer of its MLP: state `h` -> state `m` before the MLP, activations `u`.

        `tokens` (int64 positions) restricts both results to these tokens; the block still attends to all of `h`.
        `attention_input` is the result of `read_block`, computed here by default.
        """
        block = self._blocks[index]
        attention_input = block.read(h, tokens) if attention_input is None else attention_input
        return block.open(h, attention_input, tokens, self._trunk.attention_args(index, h))

    def close_block(self, index: int, m: Tensor, u: Tensor) -> Tensor:
        """Run the rest of block `index` from the results of `open_block`, of which `u` may have been changed."""
        return self._blocks[index].close(m, u)

    def run_block(self, index: int, h: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Run block `index`: the state that enters it -> the state that leaves it, of `tokens` only if given."""
        return self.close_block(index, *self.open_block(index, h, tokens))

    def run_from(self, index: int, h: Tensor) -> Tensor:
        """Run block `index` and all later blocks: the state that enters `index` -> the state that `head` takes.

        With `index == len(sites)` no block is left and `h` itself is returned.
        """
        for later in range(index, len(self._blocks)):
            h = self.run_block(later, h)
        return h

    def residual_scale(self, index: int) -> Tensor | None:
        """Return the factors `[D]` in `close_block(m, u) = m + factors * down(u)`.

        None if block `index` has another form, such as a norm after its MLP.
        """
        return self._blocks[index].residual_scale()

    def attention_scale(self, index: int) -> Tensor | None:
        """Return the factors `[D]` by which block `index` multiplies the output of its attention.

        None if the block does more than multiply, such as a norm after its attention.
        """
        return self._blocks[index].attention_scale()

    def check_attention(self) -> None:
        """Raise `UnsupportedModelError` with the reason if no attention of the model can be narrowed."""
        if self.attention_refusal is not None:
            raise UnsupportedModelError(f"the attention of this {self.family} stays whole: {self.attention_refusal}")

    def head(self, h: Tensor) -> Tensor:
        """Return the logits of the last block's output: of all tokens, or of the tokens in `readout` in their order."""
        return self._trunk.head(h)

    def refresh(self) -> AdaptedModel:
        """Return a view of the same model with its fields read again, as needed after surgery."""
        return AdaptedModel.of(self._trunk)


def _build_attention_sites(trunk: Trunk, blocks: tuple[Block, ...]) -> tuple[tuple[AttentionSite, ...], str | None]:
    """Return the sites of all blocks, or no sites and the reason."""
    try:
        sites = [block.build_attention_site(index) for index, block in enumerate(blocks)]
    except UnsupportedModelError as error:
        return (), str(error)
    refusals = trunk.attention_refusals
    return tuple(replace(site, refusals={**refusals, **site.refusals}) for site in sites), None
