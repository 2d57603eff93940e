"""A model that gives its states beside its logits, and computes activations twice to hold fewer of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pathprune.models.adapt import adapt
from pathprune.recovery.losses import Answer


class Answering(nn.Module):
    """`images [B, C, H, W] -> Answer`; with states, or with checkpointed blocks, run through the model's seam.

    The model itself is held, not copied or changed. Raises `UnsupportedModelError` for a model that has no seam, where
    one is needed.
    """

    def __init__(self, model: nn.Module, *, states: bool = False, checkpointing: bool = False) -> None:
        super().__init__()
        self.model, self.states, self.checkpointing = model, states, checkpointing
        self._adapted = adapt(model) if states or checkpointing else None

    def forward(self, images: Tensor) -> Answer:
        if self._adapted is None:
            return Answer(self.model(images))
        h_BTD = self._adapted.stem(images)
        states = []
        for index in range(len(self._adapted.sites)):
            if self.checkpointing and self.training:
                recomputed: Any = checkpoint(self._block, index, h_BTD, use_reentrant=False)
                h_BTD = recomputed
            else:
                h_BTD = self._block(index, h_BTD)
            if self.states:
                states.append(h_BTD)
        return Answer(self._adapted.head(h_BTD), tuple(states))

    def _block(self, index: int, h_BTD: Tensor) -> Tensor:
        assert self._adapted is not None
        return self._adapted.run_block(index, h_BTD)
