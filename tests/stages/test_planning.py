"""Budgets of every kind, through the whole pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import rows, tiny_recipe

from pathprune.data import DataError
from pathprune.evaluation import LatencyResult
from pathprune.models.adapt import adapt
from pathprune.pipeline import plan_recipe, prune_recipe, run_recipe
from pathprune.pruning import BudgetError, LeastSquares, MeanShift
from pathprune.recipe import RecipeError
from pathprune.stages import latency as timings
from pathprune.stages.evaluation import Evaluator
from pathprune.stages.experiment import open_experiment
from pathprune.stages.planning import Planned
from pathprune.stages.variants import variants

STEP = {"neurons": 2 / 96, "params": 50 / 4155, "macs": 240 / 21_000}  # one neuron of each of two blocks; roughly


@pytest.fixture
def one_millisecond_per_neuron(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Timed models take 4 ms and one for every neuron; returns the numbers of neurons timed so far."""
    timed: list[int] = []

    def measure(models: Any, images: Any, **_: Any) -> dict[str, LatencyResult]:
        neurons = {name: sum(site.width for site in adapt(model).sites) for name, model in models.items()}
        timed.append(neurons["pruned"])
        return {name: LatencyResult((4.0 + n,) * 3, len(images), "cpu", 1) for name, n in neurons.items()}

    monkeypatch.setattr(timings, "measure_latency", measure)
    return timed


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed again")


def planned(folder: Path, **prune: Any) -> Planned:
    recipe = tiny_recipe(folder, score={"criteria": ["variance"], "num_images": 12}, compensation="mean", prune=prune)
    (variant,) = variants(recipe)
    return open_experiment(recipe, overwrite=True).planner.plan(variant)


def with_validation(folder: Path, **sections: Any) -> Any:
    rows(range(50, 80)).to_parquet(str(folder / "data" / "validation.parquet"))
    data = {"source": str(folder / "data"), "splits": {"validation": "validation"}}
    score = {"criteria": ["variance"], "num_images": 12}
    return tiny_recipe(folder, **{"data": data, "score": score, "compensation": ["none", "mean"]} | sections)


@pytest.mark.parametrize("scope", [{}, {"scope": "global"}, {"scope": "global", "normalize": "damage"}])
@pytest.mark.parametrize("budget", ["neurons", "params", "macs"])
def test_asked_to_remove_a_fifth_it_removes_a_fifth(folder: Path, budget: str, scope: dict[str, str]) -> None:
    prune = {"ratio": 0.2, "budget": budget, "min_width": 4, **scope}
    recipe = tiny_recipe(folder, score={"criteria": ["variance"], "num_images": 12}, compensation="mean", prune=prune)
    dense, pruned = run_recipe(recipe).metrics
    key = {"neurons": "neurons_removed", "params": "num_params", "macs": "macs"}[budget]
    removed = pruned[key] if budget == "neurons" else 1 - pruned[key] / dense[key]
    assert abs(removed - 0.2) <= max(0.01, STEP[budget])
    assert removed == pytest.approx(pruned["budget_reached"])
    assert (pruned["budget_kind"], pruned["budget"]) == (budget, 0.2)
    assert min(pruned["kept_widths"]) >= 4


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_a_latency_is_met_as_measured_and_found_again_without_timing(
    folder: Path, scope: str, one_millisecond_per_neuron: list[int]
) -> None:
    found = planned(folder, ratio=0.2, budget="latency", scope=scope)
    assert abs(found.reached - 0.2) <= max(0.01, 2 / 100)
    assert found.reached == pytest.approx(0.96 * found.plan.neurons_removed)
    assert found.spread == (found.reached, found.reached)
    assert 0 < len(one_millisecond_per_neuron) <= 4
    again = planned(folder, ratio=0.2, budget="latency", scope=scope)
    assert again.plan.to_dict() == found.plan.to_dict()
    assert len(one_millisecond_per_neuron) <= 4


def test_a_budget_that_no_plan_meets_names_the_nearest(folder: Path, one_millisecond_per_neuron: list[int]) -> None:
    with pytest.raises(BudgetError, match=r"removes 0\.95 of the whole model's MACs: at most 0\.54\d+ can be"):
        planned(folder, ratio=0.95, budget="macs")
    with pytest.raises(BudgetError, match=r"removes 0\.99 of the whole model's latency: at most 0\.94 can be removed"):
        planned(folder, ratio=0.99, budget="latency")
    with pytest.raises(BudgetError, match=r"of the neurons that compete: at most 0\.5 can be removed"):
        planned(folder, ratio=0.9, min_width=24)


def test_damage_is_measured_with_the_variants_own_compensation_or_least_squares(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(
        folder,
        score={"criteria": ["variance"], "num_images": 12},
        compensation=["mean", "sequential"],
        prune={"ratio": 0.5, "scope": "global", "normalize": "damage", "min_width": 2},
    )
    experiment, used = open_experiment(recipe), []
    build = experiment.pruning.build
    monkeypatch.setattr(experiment.pruning, "build", lambda variant, plan: used.append(variant) or build(variant, plan))
    first = [experiment.planner.plan(variant).plan.to_dict() for variant in variants(recipe)]
    assert {type(variant.compensation) for variant in used} == {MeanShift, LeastSquares}
    curves = json.loads((folder / "run" / "damage" / "variance--mean.json").read_text())
    for curve in curves.values():
        assert curve[0] == [48, 0.0]
        assert [width for width, _ in curve] == [48, 36, 24, 17, 10, 5, 2]
        assert curve[-1][1] > 0
    monkeypatch.setattr(experiment.pruning, "build", refuse)
    assert [experiment.planner.plan(variant).plan.to_dict() for variant in variants(recipe)] == first


def test_a_max_drop_gives_the_smallest_model_within_it_and_a_second_run_evaluates_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_validation(folder, prune={"max_drop": 20.0})
    result = run_recipe(recipe)
    for row in result.metrics[1:]:
        assert (row["budget_kind"], row["budget"]) == ("max-drop", 20.0)
        assert row["budget_reached"] <= 20.0
        tried = list((result.folder / "evaluations" / "validation" / row["variant_id"]).iterdir())
        assert 2 <= len(tried) <= 9
    monkeypatch.setattr("pathprune.stages.evaluation.evaluate_model", refuse)
    assert run_recipe(recipe).metrics == result.metrics
    assert "variance with mean at a drop of 20 at most" in plan_recipe(recipe)


def test_what_a_max_drop_is_found_on_is_neither_evaluated_nor_mined(folder: Path) -> None:
    for other in ("evaluate", "mine", "calibrate"):
        recipe = with_validation(folder, prune={"max_drop": 1.0})
        splits = {"validation": "validation", other: "validation"}
        data = {"source": str(folder / "data"), "splits": splits}
        with pytest.raises(DataError, match="would bias the accuracy"):
            run_recipe(recipe.model_copy(update={"data": type(recipe.data).model_validate(data)}), overwrite=True)
    for command in (prune_recipe, plan_recipe):  # neither of which evaluates
        with pytest.raises(DataError, match="images used to calibrate are also validation images"):
            command(recipe.model_copy(update={"data": type(recipe.data).model_validate(data)}), overwrite=True)


def test_a_plan_that_is_narrow_from_the_start_and_loses_too_much_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluated(_: Evaluator, name: str, *__: Any, **___: Any) -> SimpleNamespace:
        return SimpleNamespace(correct=np.array([True, name == "validation/dense"]))

    monkeypatch.setattr(Evaluator, "evaluate", evaluated)
    recipe = with_validation(folder, prune={"max_drop": 1.0, "block_ratios": {0: 0.5, 1: 0.5}})
    with pytest.raises(BudgetError, match=r"no plan loses at most 1 points: .* loses 50\.00; raise prune\.max_drop"):
        open_experiment(recipe).planner.plan(variants(recipe)[0])


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({"max_drop": 1.0}, "set data.splits.validation"),
        ({"max_drop": 1.0, "ratio": 0.5}, "ratio and max_drop are both given; set one of them to null"),
        ({"ratio": []}, "neither ratio nor max_drop is given"),
        ({"max_drop": -1.0}, "max_drop"),
        ({"normalize": "damage"}, "use scope 'global'"),
        ({"budget": "flops"}, "prune.budget"),
    ],
)
def test_budgets_that_say_nothing_or_too_much_are_refused(folder: Path, prune: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny_recipe(folder, prune=prune)
