"""Training with Accelerate: from scratch, or to recover accuracy after pruning with the dense model as teacher."""

from typing import TYPE_CHECKING

from pathprune.lazy import import_on_use

if TYPE_CHECKING:
    from pathprune.recovery.config import DistillConfig, RecoverConfig, TrainConfig
    from pathprune.recovery.trainer import train
else:
    __getattr__ = import_on_use(__name__)

__all__ = ["DistillConfig", "RecoverConfig", "TrainConfig", "train"]
