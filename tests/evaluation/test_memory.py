"""Tests of the peak memory of a forward pass against hand counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pathprune.evaluation.memory import peak_memory


@pytest.mark.parametrize("hidden", [50, 200])
def test_peak_is_weights_images_and_two_live_activations(hidden: int) -> None:
    model = nn.Sequential(nn.Linear(100, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, 10, bias=False)).train()
    images = torch.randn(8, 100)
    weights = 4 * (100 * hidden + hidden * 10)
    assert peak_memory(model, images) == weights + 4 * 8 * 100 + 2 * (4 * 8 * hidden)
    assert peak_memory(model, images) == peak_memory(model, images)  # a pass leaves no memory behind
    assert model.training


def test_freed_activations_do_not_add_up() -> None:
    layers = [layer for _ in range(5) for layer in (nn.Linear(32, 32, bias=False), nn.ReLU())]
    model, images = nn.Sequential(*layers), torch.randn(16, 32)
    assert peak_memory(model, images) == 5 * 4 * 32 * 32 + 3 * (4 * 16 * 32)


def test_views_need_no_memory() -> None:
    images = torch.randn(4, 3, 2, 2)
    assert peak_memory(nn.Flatten(), images) == images.nbytes
