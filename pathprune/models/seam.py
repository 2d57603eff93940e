"""The model seam: which neurons a model has, and how to run it in steps around them.

All else in the package sees a model through `AdaptedModel`; architecture names appear in `pathprune.models` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


class UnsupportedModelError(ValueError):
    """The model's structure is not one that pathprune can mine and prune."""


@dataclass(frozen=True)
class Rows:
    """Consecutive output rows of `layer`, one per neuron, from row `start` on.

    A packed gate has gate and value in one layer; timm's `ParallelScalingBlock` (here `fused`) also has the attention's
    projections in it, and keeps the sizes and the MLP's bias itself.
    """

    layer: nn.Linear
    start: int = 0
    fused: nn.Module | None = None


@dataclass(frozen=True)
class NeuronSite:
    """One MLP hidden layer: neuron `j` is input column `j` of `down` (`[D, W]`, the MLP's down-projection).

    The hidden rows are `norm(act(up))`, or `norm(act(gate) * up)` where `rows` are those of a gate and of its value.
    """

    name: str
    block: int
    down: nn.Linear
    rows: tuple[Rows, ...] = ()
    act: nn.Module | None = None
    norm: nn.Module | None = None  # over the neurons: it sees fewer of them once some are gone

    @property
    def width(self) -> int:
        return self.down.in_features


@runtime_checkable
class AdaptedModel(Protocol):
    """A model as a stem, blocks opened and closed around their MLP's hidden rows, and a head.

    `head(h_L)` with `h_0 = stem(images)` and `h_{l+1} = close_block(l, *open_block(l, h_l))` equals `model(images)`.
    Shapes: images `[B, C, H, W]`, states `h` and `m` `[B, T, D]`, hidden rows `u` `[B, T, W_l]`, logits `[B, K]`.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def family(self) -> str: ...

    @property
    def sites(self) -> tuple[NeuronSite, ...]: ...

    @property
    def readout(self) -> tuple[int, ...]:
        """Token rows that the head reads; empty where it pools over all of them."""

    @property
    def num_classes(self) -> int: ...

    @property
    def input_size(self) -> tuple[int, int, int] | None:
        """Channels, height and width of the images that the model is made for; None where it does not say."""

    def stem(self, images: Tensor) -> Tensor: ...

    def read_block(self, index: int, h: Tensor, rows: Tensor | None = None) -> Tensor:
        """What block `index`, opened for `rows`, takes of every token of `h` before tokens meet: `[B, T, ·]`.

        Each of its rows follows from the same row of `h` alone.
        """

    def open_block(
        self, index: int, h: Tensor, rows: Tensor | None = None, *, read: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run block `index` up to its MLP's hidden layer: `h` -> what the hidden rows will be added to, hidden rows.

        `rows` (int64) asks for those tokens' rows alone of both; the block still attends to all of `h`. `read` is
        `read_block`'s result, where it is there already.
        """

    def close_block(self, index: int, m: Tensor, u: Tensor) -> Tensor:
        """Finish block `index` from `open_block`'s results; `u` may have been replaced in between."""

    def residual_scale(self, index: int) -> Tensor | None:
        """What block `index` multiplies its MLP's output by, `[D]`, where `close_block(m, u) = m + scale * down(u)`.

        None for a block of another form, such as one with a norm after its MLP.
        """

    def head(self, h: Tensor) -> Tensor:
        """The logits of the last block's output: of all its rows, or of the rows in `readout` alone, in their order."""

    def refresh(self) -> AdaptedModel:
        """Return the same view of the same model, with sites read again (after surgery)."""
