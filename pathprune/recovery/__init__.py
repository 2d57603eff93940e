"""Training with Accelerate: from scratch, or to recover accuracy after pruning with the dense model as teacher."""

from pathprune.recovery.config import DistillConfig, RecoverConfig, TrainConfig
from pathprune.recovery.trainer import train

__all__ = ["DistillConfig", "RecoverConfig", "TrainConfig", "train"]
