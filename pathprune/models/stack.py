"""An adapted model, put together: a family's trunk (what is before and after the blocks) and the blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from pathprune.models.blocks import Block, Context
from pathprune.models.seam import NeuronSite


class Trunk(Protocol):
    """What a family says of its models beside the blocks; a frozen dataclass with the model in it."""

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

    def stem(self, images: Tensor) -> Tensor: ...

    def context(self, index: int, h: Tensor) -> Context:
        """What the attention of block `index` takes beside the states `h`."""

    def head(self, h: Tensor) -> Tensor: ...

    def find_blocks(self) -> tuple[Block, ...] | str:
        """The model's blocks in their order; or what keeps them from being supported, in a few words."""


@dataclass(frozen=True)
class Stack:
    """A model in steps; satisfies `AdaptedModel`."""

    trunk: Trunk
    blocks: tuple[Block, ...]
    sites: tuple[NeuronSite, ...]

    @classmethod
    def of(cls, trunk: Trunk) -> Stack | str:
        """Put a trunk and its blocks together; or say what keeps them from being supported."""
        blocks = trunk.find_blocks()
        if isinstance(blocks, str):
            return blocks
        return cls(trunk, blocks, tuple(block.site(index) for index, block in enumerate(blocks)))

    @property
    def model(self) -> nn.Module:
        model: nn.Module = self.trunk.model
        return model

    @property
    def family(self) -> str:
        return self.trunk.family

    @property
    def readout(self) -> tuple[int, ...]:
        return self.trunk.readout

    @property
    def num_classes(self) -> int:
        return self.trunk.num_classes

    @property
    def input_size(self) -> tuple[int, int, int] | None:
        return self.trunk.input_size

    def stem(self, images: Tensor) -> Tensor:
        return self.trunk.stem(images)

    def read_block(self, index: int, h: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.blocks[index].read(h, rows)

    def open_block(
        self, index: int, h: Tensor, rows: Tensor | None = None, *, read: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        block = self.blocks[index]
        read = block.read(h, rows) if read is None else read
        return block.open(h, read, rows, self.trunk.context(index, h))

    def close_block(self, index: int, m: Tensor, u: Tensor) -> Tensor:
        return self.blocks[index].close(m, u)

    def residual_scale(self, index: int) -> Tensor | None:
        return self.blocks[index].residual_scale()

    def head(self, h: Tensor) -> Tensor:
        return self.trunk.head(h)

    def refresh(self) -> Stack:
        again = Stack.of(self.trunk)
        assert isinstance(again, Stack), again
        return again
