"""The best weights that validation saw, and when to stop waiting for better ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Best:
    """The weights with the highest top-1 so far, on the CPU; the first of several equals."""

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.top1: float | None = None
        self.weights: dict[str, Tensor] | None = None
        self.worse = 0  # validations since

    @property
    def is_old(self) -> bool:
        """Whether as many validations as patience allows were no better."""
        return self.patience is not None and self.worse >= self.patience

    def see(self, top1: float, model: nn.Module) -> None:
        if self.top1 is not None and top1 <= self.top1:
            self.worse += 1
            return
        self.top1, self.worse = top1, 0
        self.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from."""
        return {"top1": self.top1, "weights": self.weights, "worse": self.worse}

    def restore(self, state: dict[str, Any]) -> None:
        self.top1, self.weights, self.worse = state["top1"], state["weights"], state["worse"]
