"""Tests of pruning in rounds by hand."""

import pytest
import torch
from torch import nn

from pathprune.models.seam import NeuronSite
from pathprune.pruning.rounds import compose_plans, interpolate_widths, keep_all, keep_best

SITES = [NeuronSite("a", 0, nn.Linear(6, 1)), NeuronSite("b", 1, nn.Linear(4, 1))]
SCORES = {"a": torch.tensor([5.0, 1.0, 4.0, 0.0, 3.0, 2.0]), "b": torch.tensor([1.0, 1.0, 0.0, 1.0])}


def test_widths_reach_the_plan_in_equal_steps():
    plan = keep_best(SCORES, sites=SITES, widths={"a": 3, "b": 2})
    widths = [interpolate_widths(plan, done=done, rounds=3) for done in range(4)]
    assert widths == [{"a": 6, "b": 4}, {"a": 5, "b": 3}, {"a": 4, "b": 3}, {"a": 3, "b": 2}]


def test_the_top_neurons_stay_and_ties_keep_the_lower_column():
    plan = keep_best(SCORES, sites=SITES, widths={"a": 3, "b": 2})
    assert {name: kept.tolist() for name, kept in plan.kept.items()} == {"a": [0, 2, 4], "b": [0, 1]}
    assert keep_all(SITES).neurons_removed == 0


def test_composed_plans_count_columns_of_the_first_model():
    first = keep_best(SCORES, sites=SITES, widths={"a": 3, "b": 4})
    pruned = [NeuronSite("a", 0, nn.Linear(3, 1)), NeuronSite("b", 1, nn.Linear(4, 1))]
    second = keep_best({"a": torch.tensor([0.0, 2.0, 1.0]), "b": SCORES["b"]}, sites=pruned, widths={"a": 2, "b": 1})
    plan = compose_plans(first, second)
    assert {name: kept.tolist() for name, kept in plan.kept.items()} == {"a": [2, 4], "b": [0]}
    assert plan.widths == {"a": 6, "b": 4}
    with pytest.raises(ValueError, match=r"leaves widths .*, but the second plan is for"):
        compose_plans(second, first)
