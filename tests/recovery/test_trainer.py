"""Training: exact when resumed, and true to its config."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import DATA_CONFIG, rows
from torch import nn

from pathprune.data import DataError, LabelledImages, evaluation_transform, read_split
from pathprune.recovery import RecoverConfig, TrainConfig, train, trainer
from pathprune.recovery.images import TrainingImages, training_transform
from pathprune.recovery.optimization import build_mixup, mix_images

BASE: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 8,
    "learning_rate": 0.01,
    "warmup_epochs": 0.5,
    "crop_scale": (0.8, 1.0),
}


@pytest.fixture
def images() -> LabelledImages:
    return read_split(lambda _: rows(range(24)), "train")


def build_vit(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, depth=2, embed_dim=12, num_heads=2, num_classes=3
    )


def train_tiny(
    images: LabelledImages,
    model: nn.Module | None = None,
    *,
    state: Path | None = None,
    max_unreadable: float = 0.0,
    teacher: nn.Module | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    accelerator: Accelerator | None = None,
    **changes: Any,
) -> tuple[nn.Module, list[dict[str, float]]]:
    model = model or build_vit()
    if teacher is None and "distill" in changes:
        teacher = build_vit(seed=1)
    history = train(
        model,
        images,
        config=TrainConfig(**BASE | changes),
        data_config=DATA_CONFIG,
        num_classes=3,
        max_unreadable=max_unreadable,
        state_file=state,
        teacher=teacher,
        validate=validate,
        accelerator=accelerator,
    )
    return model, history


def have_equal_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


CHANGES: list[dict[str, Any]] = [
    {},
    {"ema_decay": 0.9},
    {"patch_drop_rate": 0.5, "all_patches_epochs": 1},
    {"mixup": 0.4},
    {"optimizer": "muon"},
    {"accumulate_steps": 2, "batch_size": 4},
    {"labels": 0, "distill": {"hidden": 0.5}, "layer_decay": 0.7, "grad_checkpointing": True},
    {"freeze_stem": True, "ema_decay": 0.9},
    {"schedule": "none"},
    {"schedule": "plateau", "warmup_epochs": 1},
]


class Killed(BaseException):
    """Exception that no part of the program handles."""


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: "-".join(changes) or "plain")
def test_a_killed_training_resumes_to_the_same_weights_bit_by_bit(
    images: LabelledImages, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, history = train_tiny(images, **changes)
    set_seed, state = trainer.set_seed, tmp_path / "state.pt"
    step = random.Random("-".join(changes)).randrange(1, 3 * 24 // changes.get("batch_size", 8))

    def kill(seed: int, **settings: Any) -> None:
        nonlocal step
        step -= 1
        if step < 0:
            raise Killed
        set_seed(seed, **settings)

    monkeypatch.setattr(trainer, "set_seed", kill)
    with pytest.raises(Killed):
        train_tiny(images, state=state, save_steps=2, **changes)
    monkeypatch.undo()
    torch.manual_seed(99)
    resumed, resumed_history = train_tiny(images, state=state, save_steps=2, **changes)
    assert have_equal_weights(resumed, uninterrupted)
    assert resumed_history == history


def test_augmentation_depends_on_seed_epoch_and_item_alone(images: LabelledImages) -> None:
    augmented = images.with_transform(training_transform(DATA_CONFIG, TrainConfig(**BASE)))
    training_images = TrainingImages(augmented, batch_size=8, seed=3)
    accelerator = Accelerator()
    whole = list(training_images.epoch(2, accelerator))
    torch.manual_seed(5)
    rest = list(training_images.epoch(2, accelerator, skip=1))
    assert len(whole) == 3
    for (pixels, labels), (same_pixels, same_labels) in zip(whole[1:], rest, strict=True):
        assert torch.equal(pixels, same_pixels)
        assert torch.equal(labels, same_labels)
    assert not torch.equal(next(iter(training_images.epoch(1, accelerator)))[0], whole[0][0])
    assert sorted(int(label) for _, labels in whole for label in labels) == sorted(images.labels.tolist())


def test_the_best_weights_are_kept_and_patience_stops_the_training(images: LabelledImages) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    answers = iter([0.3, 0.6, 0.5, 0.6, 0.9])

    def validate(model: nn.Module) -> float:
        seen.append(deepcopy(model.state_dict()))
        return next(answers)

    model, history = train_tiny(images, validate=validate, epochs=9, patience=2)
    assert [record["top1"] for record in history] == [0.3, 0.6, 0.5, 0.6]
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, seen[1][name])


def test_validation_within_an_epoch_can_stop_and_does_not_change_the_training(images: LabelledImages) -> None:
    plain, _ = train_tiny(images, epochs=1)
    validated, history = train_tiny(images, epochs=1, validate_steps=2, validate=lambda _: float(torch.randn(()).exp()))
    assert [record["updates"] for record in history] == [2, 3]
    if history[0]["top1"] < history[1]["top1"]:
        assert have_equal_weights(validated, plain)
    _, stopped = train_tiny(images, epochs=3, validate_steps=1, patience=1, validate=lambda _: 0.5)
    assert [record["updates"] for record in stopped] == [1, 2]
    _, after = train_tiny(images, epochs=1)  # Accelerate has left a loader before its end
    assert [record["updates"] for record in after] == [3]


def test_distillation_ignores_labels_and_does_not_change_the_teacher(images: LabelledImages) -> None:
    teacher = build_vit()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    before = deepcopy(teacher.state_dict())
    shuffled = replace(images, labels=np.roll(images.labels, 1))
    distilled, history = train_tiny(images, teacher=teacher, labels=0, distill={}, epochs=8)
    other, _ = train_tiny(shuffled, teacher=teacher, labels=0, distill={}, epochs=8)
    assert have_equal_weights(distilled, other)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_layer_decay_slows_the_lower_layers(images: LabelledImages) -> None:
    no_noise = {"epochs": 1, "optimizer": "sgd", "clip_grad_norm": None, "weight_decay": 0, "warmup_epochs": 0}
    moved = []
    for decay in (None, 0.01):
        model, _ = train_tiny(images, layer_decay=decay, **no_noise)
        start = build_vit().state_dict()
        weights = ("patch_embed.proj.weight", "head.weight")
        moved.append([float((model.state_dict()[name] - start[name]).abs().max()) for name in weights])
    (stem, head), (decayed_stem, decayed_head) = moved
    assert decayed_stem < 0.01 * stem
    assert decayed_head == pytest.approx(head, rel=0.2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_stem_keeps_its_weights_and_the_rest_is_trained(images: LabelledImages, checkpointing: bool) -> None:
    start = build_vit().state_dict()
    model, _ = train_tiny(images, freeze_stem=True, grad_checkpointing=checkpointing, epochs=1)
    kept = {name for name, weight in model.state_dict().items() if torch.equal(weight, start[name])}
    assert kept == {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_trackers_log_every_step(images: LabelledImages, tmp_path: Path) -> None:
    accelerator = Accelerator(log_with="tensorboard", project_dir=tmp_path)
    accelerator.init_trackers("training")
    train_tiny(images, accelerator=accelerator, epochs=1, labels=0.5, distill={}, validate=lambda _: 0.5)
    for tracker in accelerator.trackers:
        tracker.finish()
    events = EventAccumulator(str(tmp_path / "training")).Reload()
    assert {"loss", "loss/labels", "loss/logits", "learning_rate", "top1"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill": {}}, "distill needs a teacher"),
        ({"patience": 2}, "patience is 2, but there are no validation images"),
        ({"validate_steps": 5}, "validate_steps is 5, but there are no validation images"),
    ],
)
def test_a_missing_teacher_or_validation_raises(images: LabelledImages, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(build_vit(), images, config=TrainConfig(**BASE | changes), data_config=DATA_CONFIG, num_classes=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": 0}, "nothing to learn from"),
        ({"mixup": 0.2, "batch_size": 1}, "mixup is 0.2 and mixes two images of a batch, but batch_size is 1"),
        ({"cutmix": 1, "batch_size": 1}, "raise batch_size or set cutmix to 0"),
        ({"distill": {"hidden": 1}, "patch_drop_rate": 0.5}, "set one of them to 0"),
        ({"distill": {"logits": 0}}, "are both 0"),
    ],
)
def test_contradictory_configs_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_training_lowers_the_loss_and_ends_in_eval_mode(images: LabelledImages) -> None:
    model, history = train_tiny(images, epochs=10)
    assert history[-1]["loss"] < 0.75 * history[0]["loss"]
    assert not model.training
    assert [round(record["learning_rate"], 6) for record in history][-1] < 1e-3


def test_two_accumulated_half_batches_equal_one_batch(images: LabelledImages) -> None:
    """Without random augmentation, the mean gradient of two half batches is the gradient of the whole batch."""
    no_noise = {"epochs": 1, "horizontal_flip": 0, "crop_scale": (1, 1), "clip_grad_norm": None, "optimizer": "sgd"}
    start = build_vit()
    whole, _ = train_tiny(images, deepcopy(start), batch_size=24, warmup_epochs=0, **no_noise)
    halves, _ = train_tiny(images, deepcopy(start), batch_size=12, accumulate_steps=2, warmup_epochs=0, **no_noise)
    moved = max((a - b).abs().max() for a, b in zip(whole.parameters(), start.parameters(), strict=True))
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        assert (a - b).abs().max() < 0.05 * moved


@pytest.mark.parametrize("accumulate_steps", [3, 5])
def test_an_incomplete_group_of_batches_counts_as_its_batches(images: LabelledImages, accumulate_steps: int) -> None:
    """Three batches are one group, however many batches a complete group has."""
    no_noise = {"epochs": 1, "horizontal_flip": 0, "crop_scale": (1, 1), "clip_grad_norm": None, "optimizer": "sgd"}
    settings = {**no_noise, "warmup_epochs": 0, "schedule": "none"}
    whole, _ = train_tiny(images, batch_size=24, **settings)
    group, history = train_tiny(images, batch_size=8, accumulate_steps=accumulate_steps, **settings)
    assert history[-1]["updates"] == 1
    moved = max((a - b).abs().max() for a, b in zip(whole.parameters(), build_vit().parameters(), strict=True))
    for a, b in zip(whole.parameters(), group.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-3 * moved


@pytest.mark.parametrize("number", [1, 2, 5, 6])
def test_mixup_mixes_every_image_of_a_batch(number: int) -> None:
    mixup = build_mixup(TrainConfig(mixup=1.0, label_smoothing=0), num_classes=number)
    np.random.seed(0)
    images = torch.eye(number)[:, None, None, :].repeat(1, 3, 1, 1)
    mixed = mix_images(mixup, images.clone(), torch.arange(number))
    assert len(mixed.images) == number
    torch.testing.assert_close(mixed.images[:, 0, 0], mixed.targets)  # the pixels are mixed like the labels
    assert ((mixed.targets > 0).sum(dim=1) == (1 if number == 1 else 2)).all()


def test_updates_without_a_readable_image_do_not_count() -> None:
    broken = read_split(lambda _: rows(range(12), broken=(3, 7)), "train")
    start = build_vit()
    _, history = train_tiny(broken, epochs=1, batch_size=1, max_unreadable=0.2)
    assert history[-1]["updates"] == 10
    unreadable = read_split(lambda _: rows(range(4), broken=range(4)), "train")
    model, history = train_tiny(unreadable, epochs=1, batch_size=2, max_unreadable=1.0)
    assert history[-1]["updates"] == 0
    assert have_equal_weights(model, start)


@pytest.mark.parametrize("size", [(20, 20), (30, 20), (20, 30)])
def test_recovery_trains_on_the_evaluated_crop_except_for_flips(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    crop = training_transform(DATA_CONFIG, RecoverConfig(horizontal_flip=0))(picture)
    torch.testing.assert_close(crop, evaluation_transform(DATA_CONFIG)(picture), rtol=0, atol=0.1)
    wide_crop = training_transform(DATA_CONFIG, RecoverConfig(horizontal_flip=0, crop_ratio=(2, 2)))(picture)
    assert (wide_crop - crop).abs().max() > 0.5


@pytest.mark.parametrize("crop", [{"crop_pct": 0.5}, {"crop_mode": "squash"}, {"crop_pct": 0.8, "crop_mode": "border"}])
@pytest.mark.parametrize(
    "config", [RecoverConfig(horizontal_flip=0), TrainConfig(crop_scale=(1, 1), horizontal_flip=0)]
)
def test_training_without_random_crops_sees_the_evaluated_crop(config: TrainConfig, crop: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture, data_config = Image.fromarray(noise), DATA_CONFIG | crop
    torch.testing.assert_close(
        training_transform(data_config, config)(picture), evaluation_transform(data_config)(picture), rtol=0, atol=0
    )


def test_unreadable_images_are_skipped() -> None:
    broken = read_split(lambda _: rows(range(24), broken=(3,)), "train")
    with pytest.raises(DataError, match="1 of 24 images cannot be read, but at most 0 may be skipped"):
        train_tiny(broken, epochs=1)
    _, history = train_tiny(broken, epochs=1, max_unreadable=0.1)
    assert history[0]["loss"] > 0


def test_patch_drop_rate_raises_for_a_model_without_patches(images: LabelledImages) -> None:
    model = timm.create_model("resnet18", num_classes=3)
    with pytest.raises(ValueError, match=r"patch_drop_rate is 0.5, but ResNet has no patch_drop; set it to 0"):
        train_tiny(images, model, patch_drop_rate=0.5)


@pytest.mark.parametrize(("setting", "kind"), [("optimizer", "optimizer"), ("auto_augment", "augmentation")])
def test_names_unknown_to_timm_raise_in_one_line(images: LabelledImages, setting: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"timm cannot build the {kind} 'foo'"):
        train_tiny(images, **{setting: "foo"})


def test_a_loss_that_is_not_finite_raises(images: LabelledImages) -> None:
    model = build_vit()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1; lower learning_rate"):
        train_tiny(images, model)
