"""What figures and tables are made of, against hand counts."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from invented import CLASSES, CRITERIA, invented, mined

from pathprune.evaluation import Evaluation
from pathprune.pruning import PrunePlan
from pathprune.report.classes import class_change, class_similarity, flow
from pathprune.report.neurons import chance_overlap, overlap
from pathprune.report.tidy import save_tables, tidy_tables


def plan(**kept: list[int]) -> PrunePlan:
    sites = {name: torch.tensor(columns) for name, columns in kept.items()}
    return PrunePlan(sites, dict.fromkeys(sites, 8), {name: index for index, name in enumerate(sites)})


def test_overlap_is_the_jaccard_index() -> None:
    a, b = plan(x=[0, 1, 2, 3], y=[0, 1]), plan(x=[2, 3, 4, 5], y=[0, 1])
    assert overlap(a, a) == 1
    assert overlap(a, b, site="x") == pytest.approx(2 / 6)
    assert overlap(a, b, site="y") == 1
    assert overlap(a, b) == pytest.approx(4 / 8)


def test_chance_overlap_is_what_random_choices_have() -> None:
    rng = np.random.default_rng(0)

    def chosen() -> PrunePlan:
        kept = torch.tensor(rng.choice(400, size=160, replace=False)).sort().values
        return PrunePlan({"x": kept}, {"x": 400}, {"x": 0})

    found = [overlap(chosen(), chosen()) for _ in range(200)]
    assert chance_overlap(chosen()) == pytest.approx(np.mean(found), abs=0.01)


def test_flow_names_the_most_frequent_neurons() -> None:
    tops, places = flow(np.array([[5, 1], [5, 2], [7, 2], [9, 2], [9, 3], [5, 3]]), nodes=2)
    assert tops == [[5, 9], [2, 3]]
    assert places.tolist() == [[0, 2], [0, 0], [2, 0], [1, 0], [1, 1], [0, 1]]


def test_classes_on_the_same_neurons_are_neighbours() -> None:
    stats, _ = mined(CLASSES)  # classes 0 and 1, 2 and 3, … share their neurons
    similarity, order = class_similarity(stats)
    assert sorted(order) == list(range(len(CLASSES)))
    assert np.allclose(similarity, similarity.T)
    assert np.allclose(np.diag(similarity), 1)
    for place in range(0, len(order), 2):
        assert order[place] // 2 == order[place + 1] // 2
        assert similarity[place, place + 1] > 0.5
    _, fewer = class_similarity(stats, at_most=4)
    assert len(fewer) == 4


def test_a_classs_change_is_of_its_own_images() -> None:
    labels = np.array([0, 0, 1, 1, 1, 1])

    def evaluation(predictions: list[int]) -> Evaluation:
        made = np.array(predictions)
        return Evaluation(labels, made, (made != labels).astype(np.int64), np.ones(6), 2)

    dense, pruned = evaluation([0, 0, 1, 1, 1, 0]), evaluation([0, 1, 1, 1, 1, 1])
    assert class_change(0, dense, [pruned]) == -0.5
    assert class_change(1, dense, [pruned]) == 0.25
    assert class_change(0, dense, [pruned, dense]) == -0.25


def test_tables_are_tidy_and_the_same_in_both_formats(tmp_path: Path) -> None:
    results = invented(seeds=(0, 1))
    tables = tidy_tables(results)
    cells, blocks = 2 * len(CRITERIA) * 2, 6
    pairs = len(CRITERIA) * (len(CRITERIA) - 1) // 2
    lengths = {name: len(table) for name, table in tables.items()}
    assert lengths == {
        "cells": 1 + 2 * cells,
        "classes": (1 + 2 * cells) * len(CLASSES),
        "widths": (1 + 2 * cells) * blocks,
        "significance": 2 * 2 * pairs,
        "overlap": 2 * pairs * (1 + blocks),
        "costs": len(CRITERIA),
    }
    save_tables(tables, tmp_path / "tables")
    for name in tables:
        written = pyarrow.parquet.read_table(tmp_path / "tables" / f"{name}.parquet")
        assert written.equals(tables[name])
        with (tmp_path / "tables" / f"{name}.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == lengths[name]
    row = tables["cells"].to_pylist()[1]
    assert row["macs_removed"] == pytest.approx(1 - row["macs"] / results.dense.macs)
    assert row["retention_ci_low"] <= row["retention"] <= row["retention_ci_high"]
