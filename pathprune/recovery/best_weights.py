"""Best weights of a training by validation accuracy, and early stopping."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class BestWeights:
    """Weights with the highest validation top-1 so far, on the CPU; the earliest ones if several are equal.

    `patience` is the number of validations without improvement after which training stops; None: it never stops early.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.top1: float | None = None
        self.weights: dict[str, Tensor] | None = None
        self.num_worse = 0  # validations since the best one

    @property
    def is_patience_exhausted(self) -> bool:
        """True if the last `patience` validations brought no improvement."""
        return self.patience is not None and self.num_worse >= self.patience

    def update(self, top1: float, model: nn.Module) -> None:
        """Record a validation; copy the weights of `model` if it is the best so far."""
        if self.top1 is not None and top1 <= self.top1:
            self.num_worse += 1
            return
        self.top1, self.num_worse = top1, 0
        self.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict`."""
        return {"top1": self.top1, "weights": self.weights, "worse": self.num_worse}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self.top1, self.weights, self.num_worse = state["top1"], state["weights"], state["worse"]
