"""Tests of the cross-validated ridge against fits of every ridge, judged row by row."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pathprune.pruning.ridge import RIDGES, cross_validate_ridge

PENALTY, IMPORTANCE = np.array([1.0, 0.2, 3.0]), np.array([1.0, 5.0, 0.1])


def draw_rows(num_rows: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return centred inputs, and outputs that are a linear map of the inputs plus noise."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(num_rows, 6)) * np.array([3, 2, 1, 0.5, 0.1, 0.1])
    y = x @ np.random.default_rng(9).normal(size=(6, 3)) + noise * generator.normal(size=(num_rows, 3))
    return x - x.mean(0), y - y.mean(0)


def make_fold(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(x.T @ x / len(x)), torch.from_numpy(y.T @ x / len(x))


def choose_ridge(folds: list[tuple[Tensor, Tensor]]) -> float:
    return cross_validate_ridge(folds, penalty_D=torch.from_numpy(PENALTY), importance_D=torch.from_numpy(IMPORTANCE))


@pytest.mark.parametrize(("num_rows", "noise"), [(200, 0.1), (20, 1.0), (12, 3.0), (8, 30.0)])
def test_the_ridge_is_the_one_whose_fits_explain_the_other_fold_best(num_rows, noise):
    data = [draw_rows(num_rows, noise, seed) for seed in (0, 1)]
    errors = []
    for ridge in RIDGES:
        error = 0.0
        for (x, y), (other_x, other_y) in (data, data[::-1]):
            for d in range(3):
                penalty = ridge * x.var(0).mean() * PENALTY[d] * np.eye(6)
                weights = np.linalg.solve(x.T @ x / len(x) + penalty, x.T @ y[:, d] / len(x))
                error += IMPORTANCE[d] * np.mean((other_y[:, d] - other_x @ weights) ** 2)
        errors.append(error)
    assert choose_ridge([make_fold(x, y) for x, y in data]) == RIDGES[int(np.argmin(errors))]


def test_noisier_rows_get_a_stronger_ridge():
    ridges = [choose_ridge([make_fold(*draw_rows(20, noise, seed)) for seed in (0, 1)]) for noise in (0.01, 1.0, 30.0)]
    assert ridges[0] < ridges[1] < ridges[2]


def test_dead_inputs_and_a_single_fold_get_a_small_ridge():
    dead = (torch.zeros(6, 6, dtype=torch.float64), torch.zeros(3, 6, dtype=torch.float64))
    assert choose_ridge([dead, dead]) == RIDGES[0]
    assert choose_ridge([make_fold(*draw_rows(20, 1.0, 0))]) == pytest.approx(1e-3)
