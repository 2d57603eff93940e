"""Outputs that training compares: logits, and optionally the residual stream after every block."""

# B images, K classes, T tokens, D channels of the residual stream

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pathprune.models.adapt import adapt


class Output(NamedTuple):
    """Output for a batch: logits `[B, K]` and, if requested, the states after every block `[B, T, D]`."""

    logits: Tensor
    states: tuple[Tensor, ...] = ()


class OutputModel(nn.Module):
    """`images [B, C, H, W] -> Output`: a model that can also return its states or checkpoint its activations.

    The wrapped model is neither copied nor changed. With `states` or `checkpointing` it runs block by block, which
    raises `UnsupportedModelError` for a model without known blocks.
    """

    def __init__(self, model: nn.Module, *, states: bool = False, checkpointing: bool = False) -> None:
        super().__init__()
        self.model, self.states, self.checkpointing = model, states, checkpointing
        self._adapted = adapt(model) if states or checkpointing else None

    def forward(self, images: Tensor) -> Output:
        if self._adapted is None:
            return Output(self.model(images))
        h_BTD = self._adapted.stem(images)
        states = []
        for block in range(len(self._adapted.sites)):
            if self.checkpointing and self.training:
                recomputed: Any = checkpoint(self._run_block, block, h_BTD, use_reentrant=False)
                h_BTD = recomputed
            else:
                h_BTD = self._run_block(block, h_BTD)
            if self.states:
                states.append(h_BTD)
        return Output(self._adapted.head(h_BTD), tuple(states))

    def _run_block(self, block: int, h_BTD: Tensor) -> Tensor:
        assert self._adapted is not None
        return self._adapted.run_block(block, h_BTD)
