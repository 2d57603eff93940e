"""Training: exact where it goes on, and faithful to what the config says."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny import DATA_CONFIG, rows
from torch import nn

from pathprune.data import DataError, LabelledImages, read_split
from pathprune.recovery import TrainConfig, train

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


def fresh_model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, depth=2, embed_dim=12, num_heads=2, num_classes=3
    )


def trained(
    images: LabelledImages,
    model: nn.Module | None = None,
    *,
    state: Path | None = None,
    max_unreadable: float = 0.0,
    **changes: Any,
) -> tuple[nn.Module, list[dict[str, float]]]:
    model = model or fresh_model()
    history = train(
        model,
        images,
        config=TrainConfig(**BASE | changes),
        data_config=DATA_CONFIG,
        num_classes=3,
        max_unreadable=max_unreadable,
        state_file=state,
    )
    return model, history


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "changes",
    [{}, {"ema_decay": 0.9}, {"patch_drop_rate": 0.5, "all_patches_epochs": 1}, {"mixup": 0.4}, {"optimizer": "muon"}],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_going_on_after_a_stop_gives_the_same_model_bit_by_bit(
    images: LabelledImages, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken, history = trained(images, **changes)
    state = tmp_path / "state.pt"

    def stop_in_the_second(_: nn.Module) -> float:
        if state.exists() and len(torch.load(state, weights_only=True)["history"]) == 1:
            state.rename(tmp_path / "kept.pt")
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        train(
            fresh_model(),
            images,
            config=TrainConfig(**BASE | changes),
            data_config=DATA_CONFIG,
            num_classes=3,
            state_file=state,
            validate=stop_in_the_second,
        )
    resumed, resumed_history = trained(images, state=tmp_path / "kept.pt", **changes)
    assert same(resumed, unbroken)
    assert [record["loss"] for record in resumed_history] == [record["loss"] for record in history]


def test_training_lowers_the_loss_and_leaves_eval_mode(images: LabelledImages) -> None:
    model, history = trained(images, epochs=10)
    assert history[-1]["loss"] < 0.75 * history[0]["loss"]
    assert not model.training
    assert [round(record["learning_rate"], 6) for record in history][-1] < 1e-3


def test_two_accumulated_halves_are_one_batch(images: LabelledImages) -> None:
    """Without random augmentation the mean gradient of two half batches is that of the whole."""
    still = {"epochs": 1, "horizontal_flip": 0, "crop_scale": (1, 1), "clip_grad_norm": None, "optimizer": "sgd"}
    start = fresh_model()
    whole, _ = trained(images, deepcopy(start), batch_size=24, warmup_epochs=0, **still)
    halves, _ = trained(images, deepcopy(start), batch_size=12, accumulate_steps=2, warmup_epochs=0, **still)
    moved = max((a - b).abs().max() for a, b in zip(whole.parameters(), start.parameters(), strict=True))
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        assert (a - b).abs().max() < 0.05 * moved


def test_unreadable_images_are_not_trained_on() -> None:
    broken = read_split(lambda _: rows(range(24), broken=(3,)), "train")
    with pytest.raises(DataError, match="1 of 24 images cannot be read, 0 may be skipped"):
        trained(broken, epochs=1)
    _, history = trained(broken, epochs=1, max_unreadable=0.1)
    assert history[0]["loss"] > 0


def test_patches_cannot_be_dropped_from_a_model_without_patches(images: LabelledImages) -> None:
    model = timm.create_model("resnet18", num_classes=3)
    with pytest.raises(ValueError, match=r"patch_drop_rate is 0.5, but ResNet has no patch_drop; set it to 0"):
        trained(images, model, patch_drop_rate=0.5)


@pytest.mark.parametrize(("setting", "kind"), [("optimizer", "optimizer"), ("auto_augment", "augmentation")])
def test_names_that_timm_does_not_know_are_one_line(images: LabelledImages, setting: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"timm cannot make the {kind} 'foo'"):
        trained(images, **{setting: "foo"})


def test_a_loss_that_is_not_finite_stops_the_training(images: LabelledImages) -> None:
    model = fresh_model()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1; lower learning_rate"):
        trained(images, model)
