"""Losses of a training against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pathprune.recovery import TrainConfig
from pathprune.recovery.losses import TrainingLoss, relative_distance, softened_divergence
from pathprune.recovery.outputs import Output


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_divergence_is_that_of_the_softened_probabilities() -> None:
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))  # at T = 2 the odds are 3 to 1
    assert softened_divergence(student, teacher, temperature=2.0).item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_of_the_divergence_hardly_depends_on_a_high_temperature() -> None:
    teacher = normal(4, 5, seed=0)
    gradients = []
    for temperature in (50.0, 200.0):
        student = normal(4, 5, seed=1).requires_grad_()
        softened_divergence(student, teacher, temperature=temperature).backward()
        gradients.append(student.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.1, atol=1e-3)


def test_the_distance_is_relative_to_the_norm_of_each_token() -> None:
    small, large = torch.tensor([3.0, 4.0]), torch.tensor([300.0, 400.0])
    teacher = torch.stack([small, large])[None]  # one image of two tokens
    assert relative_distance([1.1 * teacher], [teacher]).item() == pytest.approx(0.01, rel=1e-4)
    student = torch.stack([2 * small, large])[None]
    assert relative_distance([student, teacher], [teacher, teacher]).item() == pytest.approx(0.25)  # of two blocks


def test_the_terms_of_the_loss_are_weighted_and_vanish_for_an_equal_student() -> None:
    config = TrainConfig(labels=0.5, label_smoothing=0.0, distill={"logits": 2.0, "hidden": 3.0})
    loss = TrainingLoss(config)
    teacher = Output(normal(2, 3, seed=0), (normal(2, 4, 5, seed=1),))
    student = Output(normal(2, 3, seed=2), (normal(2, 4, 5, seed=3),))
    targets = torch.tensor([0, 2])
    terms = loss(student, targets, teacher)
    to_labels = -student.logits.log_softmax(-1)[[0, 1], targets].mean()
    torch.testing.assert_close(terms["labels"], 0.5 * to_labels)
    torch.testing.assert_close(
        terms["logits"], 2 * softened_divergence(student.logits, teacher.logits, temperature=2.0)
    )
    torch.testing.assert_close(terms["hidden"], 3 * relative_distance(student.states, teacher.states))
    equal = loss(teacher, targets, teacher)
    assert equal["logits"].item() == pytest.approx(0, abs=1e-6)
    assert equal["hidden"].item() == 0
    one_hot = torch.nn.functional.one_hot(targets, 3).float()
    torch.testing.assert_close(loss(student, one_hot, teacher)["labels"], terms["labels"])
