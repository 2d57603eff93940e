"""How a model is trained, as a recipe says it: from scratch, or to recover what pruning cost."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pathprune.section import AsTuple, Section


class DistillConfig(Section):
    """What is learned from a teacher: here the dense model, whose answers need no labels."""

    teacher: str | None = Field(None, description="checkpoint folder, timm or hf-hub: name; null: the dense model")
    logits: float = Field(1.0, ge=0, description="weight of the teacher's class probabilities")
    temperature: float = Field(2.0, gt=0, description="logits are divided by it before the softmax")
    hidden: float = Field(0.0, ge=0, description="weight of the states after every block")

    @model_validator(mode="after")
    def _something(self) -> DistillConfig:
        if not (self.logits or self.hidden):
            raise ValueError("logits and hidden both weigh 0; distil one of them, or leave distill out")
        return self


class TrainConfig(Section):
    """How a model is trained; optimizers, schedules and augmentations are timm's, by timm's names."""

    epochs: int = Field(10, ge=1, description="passes over the training images")
    batch_size: int = Field(128, ge=1, description="images per step and process")
    labels: float = Field(1.0, ge=0, description="weight of the cross entropy to the labels; 0: labels are not used")
    distill: DistillConfig | None = Field(None, description="learn from a teacher too; null: from labels alone")
    optimizer: str = Field("adamw", description="any name of timm.optim.create_optimizer_v2")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    freeze_stem: bool = Field(False, description="keep what makes tokens of images: patch embedding, positions")
    layer_decay: float | None = Field(None, gt=0, le=1, description="learning rate of a block over that of the next")
    weight_decay: float = Field(0.05, ge=0, description="not applied to biases and norms")
    schedule: str = Field("cosine", description="any name of timm.scheduler.create_scheduler_v2")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up")
    min_learning_rate: float = Field(1e-6, ge=0, description="learning rate at the end of the schedule")
    clip_grad_norm: float | None = Field(1.0, gt=0, description="largest gradient norm; null: no clipping")
    accumulate_steps: int = Field(1, ge=1, description="batches per optimizer step")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all classes")
    mixup: float = Field(0.0, ge=0, description="mixup alpha; 0: off")
    cutmix: float = Field(0.0, ge=0, description="cutmix alpha; 0: off")
    crop_scale: tuple[float, float] = Field((0.6, 1.0), description="area range of random resized crops; 1: all of it")
    crop_ratio: tuple[float, float] = Field((0.75, 1.33), description="range of the crops' width over height")
    horizontal_flip: float = Field(0.5, ge=0, le=1, description="probability of a flip")
    color_jitter: float = Field(0.0, ge=0, description="strength of colour jitter")
    auto_augment: str | None = Field(None, description="timm policy such as rand-m9-mstd0.5; null: none")
    random_erasing: float = Field(0.0, ge=0, le=1, description="probability of random erasing")
    patch_drop_rate: float = Field(0.0, ge=0, lt=1, description="share of patch tokens dropped while training")
    all_patches_epochs: int = Field(0, ge=0, description="last epochs, trained without dropping patches")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="keep an exponential moving average of the weights")
    grad_checkpointing: bool = Field(False, description="compute activations again in the backward pass: less memory")
    compile: bool = Field(False, description="torch.compile the model while training")
    validate_steps: int | None = Field(
        None, ge=1, description="optimizer steps between validations; null: after epochs only"
    )
    patience: int | None = Field(None, ge=1, description="stop after so many validations without a better one")
    save_steps: int = Field(100, ge=1, description="optimizer steps between states that a killed training goes on from")

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _range(cls, value: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        low, high = value
        most, limit = (1.0, " and up to 1") if info.field_name == "crop_scale" else (math.inf, "")
        if not 0 < low <= high <= most:
            raise ValueError(
                f"[{low:g}, {high:g}] is not a range: give two numbers above 0{limit}, the lower one first"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.labels == 0 and self.distill is None:
            raise ValueError("labels weigh 0 and there is nothing to distil: nothing to learn from; set distill")
        if self.distill is not None and self.distill.hidden and self.patch_drop_rate:
            raise ValueError(
                "distill.hidden compares every token, and patch_drop_rate drops some; set one of them to 0"
            )
        return self

    @property
    def learns_logits(self) -> bool:
        """Whether a part of the loss reads the logits."""
        return self.labels > 0 or (self.distill is not None and self.distill.logits > 0)

    @property
    def learns_states(self) -> bool:
        """Whether a part of the loss reads the states after the blocks."""
        return self.distill is not None and self.distill.hidden > 0

    @property
    def content(self) -> dict[str, Any]:
        """What the trained model depends on, as plain data."""
        return self.model_dump(mode="json", exclude={"save_steps"})


class RecoverConfig(TrainConfig):
    """How pruned models are trained: the keys of `train`, with defaults for a model that has little to make up for."""

    epochs: int = Field(1, ge=1, description="passes over the training images, in every round")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    distill: DistillConfig | None = Field(
        DistillConfig(hidden=100.0), description="learn from the dense model; null: from labels"
    )
    batch_size: int = Field(64, ge=1, description="images per step and process")
    learning_rate: float = Field(1e-4, gt=0, description="peak learning rate")
    crop_scale: tuple[float, float] = Field((1.0, 1.0), description="area range of crops; 1: as much as is evaluated")
    crop_ratio: tuple[float, float] = Field((1.0, 1.0), description="range of the crops' width over height")
    freeze_stem: bool = Field(True, description="keep what makes tokens of images, which pruning leaves alone")
    warmup_epochs: float = Field(0.1, ge=0, description="epochs of linear warm-up")
    criteria: Annotated[tuple[str, ...], AsTuple] = Field(
        ("all",), min_length=1, description="criteria whose pruned models are trained; all: every one"
    )
    compensations: Annotated[tuple[str, ...], AsTuple] = Field(
        ("all",), min_length=1, description="compensations that training starts from; all: every one"
    )
    rounds: int = Field(1, ge=1, description="1: prune, then recover; more: prune a share, recover, and again")
    rescore: bool = Field(True, description="mine and score the recovered model before each further round")

    @property
    def content(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"save_steps", "criteria", "compensations"})
