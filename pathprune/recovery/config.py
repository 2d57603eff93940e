"""Settings of a training, from scratch or after pruning."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pathprune.section import AsTuple, Section


class DistillConfig(Section):
    """Distillation: learn from the outputs of a teacher model, which needs no labels."""

    teacher: str | None = Field(
        None, description="Teacher: a checkpoint folder, or a timm or hf-hub: name. null: the dense model."
    )
    logits: float = Field(1.0, ge=0, description="Weight of the divergence from the teacher's class probabilities.")
    temperature: float = Field(2.0, gt=0, description="Temperature of the softmax of both models.")
    hidden: float = Field(
        0.0, ge=0, description="Weight of the relative distance to the teacher's states after every block."
    )

    @model_validator(mode="after")
    def _check_weights(self) -> DistillConfig:
        if not (self.logits or self.hidden):
            raise ValueError("logits and hidden are both 0; set one of them above 0, or set distill to null")
        return self


class TrainConfig(Section):
    """Training of `pathprune finetune`. Names of optimizers, schedules and augmentations are those of timm."""

    epochs: int = Field(10, ge=1, description="Passes over the training images.")
    batch_size: int = Field(128, ge=1, description="Images per batch and process.")
    labels: float = Field(1.0, ge=0, description="Weight of the cross-entropy to the labels. 0: ignore the labels.")
    distill: DistillConfig | None = Field(None, description="Distillation from a teacher. null: none.")
    optimizer: str = Field("adamw", description="Optimizer: any name that timm.optim.create_optimizer_v2 accepts.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate.")
    freeze_stem: bool = Field(
        False, description="Do not train the stem: patch embedding, position embedding and class token."
    )
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Learning rate of a block as a fraction of the next block's. null: equal rates.",
    )
    weight_decay: float = Field(0.05, ge=0, description="Weight decay, except of biases and norms.")
    schedule: str = Field(
        "cosine",
        description="Learning rate schedule: any name that timm.scheduler.create_scheduler_v2 accepts. Over 10 epochs, "
        "step decays every 3, multistep after 3, 6 and 9, each to a tenth. plateau decays to a tenth when the "
        "validation accuracy, or without validation the loss, stops improving.",
    )
    warmup_epochs: float = Field(1.0, ge=0, description="Epochs of linear warm-up.")
    min_learning_rate: float = Field(1e-6, ge=0, description="Learning rate at the end of the schedule.")
    clip_grad_norm: float | None = Field(1.0, gt=0, description="Maximum gradient norm. null: no clipping.")
    accumulate_steps: int = Field(1, ge=1, description="Batches per optimizer step.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Label smoothing of the cross-entropy.")
    mixup: float = Field(0.0, ge=0, description="Mixup alpha. 0: off.")
    cutmix: float = Field(0.0, ge=0, description="CutMix alpha. 0: off.")
    crop_scale: tuple[float, float] = Field(
        (0.6, 1.0),
        description="Area range of random crops, as a fraction of the image. [1.0, 1.0]: the crop of the evaluation.",
    )
    crop_ratio: tuple[float, float] = Field(
        (0.75, 1.33), description="Range of the aspect ratio (width over height) of random crops."
    )
    horizontal_flip: float = Field(0.5, ge=0, le=1, description="Probability of a horizontal flip.")
    color_jitter: float = Field(0.0, ge=0, description="Strength of the color jitter. 0: off.")
    auto_augment: str | None = Field(
        None, description="Augmentation policy of timm, such as rand-m9-mstd0.5. null: none."
    )
    random_erasing: float = Field(0.0, ge=0, le=1, description="Probability of random erasing.")
    patch_drop_rate: float = Field(
        0.0, ge=0, lt=1, description="Fraction of patch tokens dropped in training, which makes epochs cheaper."
    )
    all_patches_epochs: int = Field(0, ge=0, description="Number of last epochs without dropped patches.")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Decay of an exponential moving average of the weights. null: no average."
    )
    grad_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    compile: bool = Field(False, description="Train with torch.compile, which pays off in long trainings.")
    validate_steps: int | None = Field(
        None,
        ge=1,
        description="Optimizer steps between validations on data.splits.validation. null: after every epoch only.",
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after this many validations without improvement. null: never stop early."
    )
    save_steps: int = Field(
        100,
        ge=1,
        description="Optimizer steps between saved states, from which an interrupted training continues.",
    )

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _check_range(cls, value: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        low, high = value
        most, limit = (1.0, " and up to 1") if info.field_name == "crop_scale" else (math.inf, "")
        if not 0 < low <= high <= most:
            raise ValueError(
                f"[{low:g}, {high:g}] is not a range: give two numbers above 0{limit}, the lower one first"
            )
        return value

    @model_validator(mode="after")
    def _check_loss(self) -> TrainConfig:
        if self.batch_size == 1 and (self.mixup or self.cutmix):
            name = "mixup" if self.mixup else "cutmix"
            raise ValueError(
                f"{name} is {getattr(self, name):g} and mixes two images of a batch, but batch_size is 1; raise "
                f"batch_size or set {name} to 0"
            )
        if self.labels == 0 and self.distill is None:
            raise ValueError("labels is 0 and distill is null, so that there is nothing to learn from; set one of them")
        if self.distill is not None and self.distill.hidden and self.patch_drop_rate:
            raise ValueError(
                "distill.hidden compares every token, but patch_drop_rate drops tokens; set one of them to 0"
            )
        return self

    @property
    def learns_logits(self) -> bool:
        """True if a term of the loss depends on the logits."""
        return self.labels > 0 or (self.distill is not None and self.distill.logits > 0)

    @property
    def learns_states(self) -> bool:
        """True if a term of the loss depends on the states after the blocks."""
        return self.distill is not None and self.distill.hidden > 0

    @property
    def content(self) -> dict[str, Any]:
        """Settings that determine the trained model, as plain data."""
        return self.model_dump(mode="json", exclude={"save_steps"})


class RecoverConfig(TrainConfig):
    """Training of pruned models, with the dense model as teacher. Takes every key of `train`, with other defaults."""

    epochs: int = Field(1, ge=1, description="Passes over the training images in every round.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing of the cross-entropy.")
    distill: DistillConfig | None = Field(
        DistillConfig(hidden=100.0), description="Distillation from the dense model. null: learn from labels alone."
    )
    batch_size: int = Field(64, ge=1, description="Images per batch and process.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate.")
    crop_scale: tuple[float, float] = Field(
        (1.0, 1.0),
        description="Area range of random crops, as a fraction of the image. [1.0, 1.0]: the crop of the evaluation. "
        "In long trainings smaller crops may help.",
    )
    crop_ratio: tuple[float, float] = Field(
        (1.0, 1.0), description="Range of the aspect ratio (width over height) of random crops."
    )
    freeze_stem: bool = Field(
        True,
        description="Do not train the stem: patch embedding, position embedding and class token.",
    )
    warmup_epochs: float = Field(0.1, ge=0, description="Epochs of linear warm-up.")
    criteria: Annotated[tuple[str, ...], AsTuple] = Field(
        ("all",), min_length=1, description="Criteria whose pruned models are trained: names of score.criteria, or all."
    )
    compensations: Annotated[tuple[str, ...], AsTuple] = Field(
        ("all",),
        min_length=1,
        description="Compensations whose pruned models are trained: names of compensation, or all.",
    )
    rounds: int = Field(
        1,
        ge=1,
        description="Rounds of pruning and training. Every round removes the same number of neurons.",
    )
    rescore: bool = Field(
        True,
        description="Mine and score the trained model before each further round. false: use the scores of the dense "
        "model in all rounds.",
    )

    @property
    def content(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"save_steps", "criteria", "compensations"})
