"""Tests of the numbers behind figures and tables against hand counts."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from fake_results import CLASSES, CRITERIA, fake_paths, fake_results

from pathprune.evaluation import Evaluation
from pathprune.pruning import PrunePlan
from pathprune.report.classes import measure_class
from pathprune.report.neurons import compute_overlap, estimate_chance_overlap
from pathprune.report.paths import find_flow, find_similar_classes
from pathprune.report.rows import VariantRow
from pathprune.report.tidy import build_tidy_tables, save_tables


def make_plan(**kept: list[int]) -> PrunePlan:
    sites = {name: torch.tensor(columns) for name, columns in kept.items()}
    return PrunePlan(sites, dict.fromkeys(sites, 8), {name: index for index, name in enumerate(sites)})


def test_overlap_is_the_jaccard_index() -> None:
    a, b = make_plan(x=[0, 1, 2, 3], y=[0, 1]), make_plan(x=[2, 3, 4, 5], y=[0, 1])
    assert compute_overlap(a, a) == 1
    assert compute_overlap(a, b, site="x") == pytest.approx(2 / 6)
    assert compute_overlap(a, b, site="y") == 1
    assert compute_overlap(a, b) == pytest.approx(4 / 8)


def test_chance_overlap_matches_random_plans() -> None:
    rng = np.random.default_rng(0)

    def draw_plan() -> PrunePlan:
        kept = torch.tensor(rng.choice(400, size=160, replace=False)).sort().values
        return PrunePlan({"x": kept}, {"x": 400}, {"x": 0})

    overlaps = [compute_overlap(draw_plan(), draw_plan()) for _ in range(200)]
    assert estimate_chance_overlap(draw_plan()) == pytest.approx(np.mean(overlaps), abs=0.01)


def test_flow_finds_the_most_frequent_neurons() -> None:
    flow = find_flow(np.array([[5, 1], [5, 2], [7, 2], [9, 2], [9, 3], [5, 3]]), num_top=2)
    assert flow.neurons == [[5, 9], [2, 3]]
    assert flow.places_NL.tolist() == [[0, 2], [0, 0], [2, 0], [1, 0], [1, 1], [0, 1]]


def test_classes_that_share_neurons_are_neighbours() -> None:
    stats, _ = fake_paths(CLASSES)  # classes 0 and 1, 2 and 3, … share their neurons
    similarity, order = find_similar_classes(stats)
    assert sorted(order) == list(range(len(CLASSES)))
    assert np.allclose(similarity, similarity.T)
    assert np.allclose(np.diag(similarity), 1)
    for place in range(0, len(order), 2):
        assert order[place] // 2 == order[place + 1] // 2
        assert similarity[place, place + 1] > 0.5
    _, fewer = find_similar_classes(stats, max_classes=4)
    assert len(fewer) == 4


def test_class_accuracy_counts_the_images_of_the_class() -> None:
    labels = np.array([0, 0, 1, 1, 1, 1])

    def evaluation(predictions: list[int]) -> Evaluation:
        predicted = np.array(predictions)
        return Evaluation(labels, predicted, (predicted != labels).astype(np.int64), np.ones(6), 2)

    dense, pruned = evaluation([0, 0, 1, 1, 1, 0]), evaluation([0, 1, 1, 1, 1, 1])
    assert measure_class(0, "a", dense, [pruned]).change == -0.5
    assert measure_class(1, "b", dense, [pruned]).change == 0.25
    assert measure_class(0, "a", dense, [pruned, dense]).change == -0.25
    assert measure_class(1, "b", dense, [pruned]).num_images == 4


def test_tables_are_tidy_and_equal_in_both_formats(tmp_path: Path) -> None:
    results = fake_results(seeds=(0, 1))
    tables = build_tidy_tables(results)
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


def test_rows_survive_json() -> None:
    for row in fake_results(recovered=("path",)).rows:
        assert VariantRow.model_validate(row.to_json()) == row


def test_timing_is_added_as_a_whole() -> None:
    untimed = fake_results(latency=False).rows[1]
    timing = fake_results().rows[1].timing
    assert untimed.timing is None
    assert timing is not None
    assert untimed.with_timing(timing).timing == timing
