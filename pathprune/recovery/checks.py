"""Check of a training's config against the model and the other arguments."""

from __future__ import annotations

from torch import nn

from pathprune.recovery.config import TrainConfig


def check_config(config: TrainConfig, model: nn.Module, *, teacher: nn.Module | None, can_validate: bool) -> None:
    """Raise `ValueError` for a config that does not fit the model, or that lacks a teacher or validation images."""
    if config.patch_drop_rate and not hasattr(model, "patch_drop"):
        raise ValueError(
            f"patch_drop_rate is {config.patch_drop_rate}, but {type(model).__name__} has no patch_drop; set it to 0"
        )
    if config.distill is not None and teacher is None:
        raise ValueError("distill needs a teacher; set distill.teacher")
    if not can_validate and (config.patience or config.validate_steps):
        name = "patience" if config.patience else "validate_steps"
        raise ValueError(
            f"{name} is {getattr(config, name)}, but there are no validation images; set data.splits.validation"
        )
