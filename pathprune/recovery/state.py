"""State of a training that is saved and restored, exact to the optimizer step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from pathprune.files import write_atomically
from pathprune.recovery.best_weights import BestWeights

Record = dict[str, float]


@dataclass
class Position:
    """Position of a training."""

    epoch: int = 0
    batch: int = 0  # within the epoch
    updates: int = 0  # optimizer steps


@dataclass
class Sums:
    """Sums of one process: of the loss since the last record, of unreadable images in this epoch."""

    loss: float = 0.0
    num_images: int = 0
    num_unreadable: int = 0


@dataclass
class TrainingState:
    """Everything that changes during a training."""

    model: nn.Module
    optimizer: Any  # as prepared by Accelerate
    average: ModelEmaV3 | None  # exponential moving average of the weights
    scaler: Any  # gradient scaler of float16, or None
    best: BestWeights
    schedule: Any = None  # a learning rate schedule with a state, or None: other schedules depend on the position alone
    position: Position = field(default_factory=Position)
    sums: Sums = field(default_factory=Sums)
    history: list[Record] = field(default_factory=list)

    def save(self, file: Path, *, totals: Sums) -> None:
        """Write the state atomically, between two optimizer steps; `totals` are the sums over all processes."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.module.state_dict() if self.average else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "best": self.best.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "history": self.history,
            "position": vars(self.position),
            "sums": vars(totals),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(file) as part:
            torch.save(state, part)

    def load(self, file: Path, *, is_main_process: bool) -> None:
        """Restore a saved state; the main process takes the sums over all processes, the others start from zero."""
        state = torch.load(file, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        self.best.load_state_dict(state["best"])
        if self.schedule:
            self.schedule.load_state_dict(state["schedule"])
        self.history = list(state["history"])
        self.position = Position(**state["position"])
        self.sums = Sums(**state["sums"]) if is_main_process else Sums()
