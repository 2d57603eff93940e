"""Learning rate schedules: all of timm's, in proportion to the length of the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pathprune.recovery import TrainConfig
from pathprune.recovery.optimization import build_optimizer, build_scheduler

RATE = 0.01


def trace(schedule: str, *, epochs: int, metrics: list[float] | None = None, **changes: Any) -> list[float]:
    """Return the learning rate of the first update of every epoch of four updates."""
    config = TrainConfig(
        **{"schedule": schedule, "epochs": epochs, "learning_rate": RATE, "warmup_epochs": 0} | changes
    )
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    scheduler = build_scheduler(optimizer, config, batches_per_epoch=4)
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        for update in range(4):
            optimizer.step()
            scheduler.step_update(4 * epoch + update + 1)
        scheduler.step(epoch + 1, metric=metrics[epoch] if metrics else 0.0)
    return rates


def test_step_decays_after_every_three_of_ten_epochs() -> None:
    assert trace("step", epochs=10) == pytest.approx([RATE] * 3 + [RATE / 10] * 3 + [RATE / 100] * 3 + [RATE / 1000])


def test_multistep_decays_after_3_6_and_9_of_ten_epochs() -> None:
    assert trace("multistep", epochs=10) == pytest.approx(trace("step", epochs=10))


def test_plateau_decays_when_the_validation_stops_improving() -> None:
    improving = trace("plateau", epochs=6, metrics=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert improving == pytest.approx([RATE] * 6)
    stalling = trace("plateau", epochs=6, metrics=[0.1, 0.3, 0.3, 0.4, 0.4, 0.3])
    assert stalling == pytest.approx([RATE, RATE, RATE, RATE / 10, RATE / 10, RATE / 100])


def test_plateau_warms_up_in_whole_epochs() -> None:
    rates = trace("plateau", epochs=4, metrics=[0.1, 0.2, 0.3, 0.4], warmup_epochs=0.5)
    assert rates == pytest.approx([RATE / 100, RATE, RATE, RATE])


@pytest.mark.parametrize("schedule", ["cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt"])
@pytest.mark.parametrize("epochs", [1, 3, 30])
def test_every_decaying_schedule_of_timm_decays_in_a_training_of_any_length(schedule: str, epochs: int) -> None:
    config = TrainConfig(schedule=schedule, epochs=epochs, learning_rate=RATE, warmup_epochs=0.1 * epochs)
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    scheduler = build_scheduler(optimizer, config, batches_per_epoch=20)
    rates = []
    for update in range(20 * epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step_update(update + 1)
    assert rates[0] == pytest.approx(RATE / 100)
    assert max(rates) == pytest.approx(RATE, rel=0.2)
    assert rates[-1] < (0.8 if schedule == "poly" else 0.5) * RATE  # timm's default power is 0.1
    assert torch.tensor(rates[3 * epochs :]).diff().max() <= 1e-9


def test_a_constant_schedule_warms_up_and_then_stays() -> None:
    assert trace("constant", epochs=4, warmup_epochs=1) == pytest.approx([RATE / 100, RATE, RATE, RATE])
