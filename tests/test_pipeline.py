"""A whole run: what it computes, what it writes, and what a second run leaves alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
import torch
from interception import launch, refuse, refuse_steps
from tiny import rows, short_training, tiny_recipe

from pathprune.data import DataError
from pathprune.evaluation import LatencyResult
from pathprune.keys import key_of
from pathprune.mining import ClassStats, PathSet
from pathprune.models.adapt import adapt
from pathprune.models.checkpoint import load_pruned, save_pruned
from pathprune.models.config import ModelConfig
from pathprune.models.pruned_config import read_pruned_config
from pathprune.pipeline import (
    compare_recipe,
    evaluate_recipe,
    mine_recipe,
    plan_recipe,
    prune_recipe,
    run_recipe,
)
from pathprune.pruning import Budget, parse_compensation
from pathprune.recipe import RecipeError
from pathprune.report.rows import Timing
from pathprune.scoring import parse_criterion
from pathprune.stages import context, evaluation, mining, scoring
from pathprune.stages import latency as timings
from pathprune.stages.experiment import open_experiment
from pathprune.stages.variants import Variant, label, variants

REQUIRED = {
    *("variant_id", "criterion", "compensation", "tokens", "budget_kind", "budget", "neurons_removed", "seed"),
    *("num_images", "top1", "top1_ci", "retention", "retention_ci", "num_params", "macs"),
    *("latency_ms", "latency_batch_size"),
}


def test_a_run_writes_one_complete_row_per_variant(folder: Path) -> None:
    result = run_recipe(tiny_recipe(folder))
    written = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert written == json.loads(json.dumps(result.metrics))
    dense, *pruned = written
    assert all(set(row) >= REQUIRED for row in written)
    assert len({row["variant_id"] for row in written}) == len(written) == 1 + 2 * 4 * 2
    assert (dense["criterion"], dense["compensation"], dense["retention"]) == (None, None, 1.0)
    assert {row["criterion"] for row in pruned} == {"path", "path-class", "magnitude-l2", "random"}
    assert {row["tokens"] for row in pruned if row["criterion"].startswith("path")} == {"all", "class"}
    for row in written:
        assert row["neurons_removed"] == row["budget"]
        assert row["num_images"] == 30
        assert row["top1_ci"][0] <= row["top1"] <= row["top1_ci"][1]
        assert row["latency_ms"] > 0
    smallest = next(row for row in pruned if row["budget"] == 0.5)
    removed = 2 * 24  # neurons, each with a row of fc1, its bias, and a column of fc2, for embeddings of 12
    assert dense["num_params"] - smallest["num_params"] == removed * (12 + 1 + 12)
    assert dense["macs"] - smallest["macs"] == removed * (12 + 12) * 5  # five tokens
    for name in ("recipe.yaml", "environment.json", "mined/all/paths.parquet"):
        assert (result.folder / name).stat().st_size > 0


def test_a_second_run_computes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_recipe(tiny_recipe(folder))
    refuse_steps(monkeypatch, "collect_statistics", "score", "prune", "evaluate_model", "save_pruned")
    monkeypatch.setattr(mining, "locate_paths", refuse)
    monkeypatch.setattr(timings, "measure_latency", refuse)
    second = run_recipe(tiny_recipe(folder))
    assert json.dumps(second.metrics) == json.dumps(first.metrics)


def test_a_comparison_is_a_run_without_checkpoints_and_latency(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = compare_recipe(tiny_recipe(folder))
    assert not (compared.folder / "pruned").exists()
    assert not (compared.folder / "latency.json").exists()
    with monkeypatch.context() as patch:
        refuse_steps(patch, "locate_paths", "collect_statistics", "score", "evaluate_model")
        ran = run_recipe(tiny_recipe(folder))
    untimed = ("checkpoint", "checkpoint_bytes", *(key for key in Timing.model_fields))
    for one, other in zip(compared.metrics, ran.metrics, strict=True):
        assert all(one[key] == other[key] for key in one if key not in untimed)
    assert len(list((ran.folder / "pruned").iterdir())) == 4
    compare_recipe(tiny_recipe(folder))
    assert len(list((ran.folder / "pruned").iterdir())) == 4


def test_seeds_differ_in_all_but_the_evaluation_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"evaluate": {"num_images": 12, "latency": False}, "compare": {"seeds": [0, 3]}, "prune": {"ratio": 0.5}}
    result = compare_recipe(tiny_recipe(folder, **chosen, report=True))
    assert result.results is not None
    assert result.results.num_seeds == 2
    first, second = (result.folder / place / "mined/all/paths.parquet" for place in ("", "seeds/3"))
    assert PathSet.load(first).indices.tolist() != PathSet.load(second).indices.tolist()
    for evaluations in result.results.evaluations.values():
        assert [evaluation.labels.tolist() for evaluation in evaluations] == [evaluations[0].labels.tolist()] * 2
    seeds = pyarrow.parquet.read_table(result.folder / "tables" / "cells.parquet")["seed"].to_pylist()
    assert set(seeds) == {0, 3}
    assert {row["seed"] for row in result.metrics} == {0}
    html = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "averaged over 2 seeds" in html
    refuse_steps(monkeypatch, "locate_paths", "collect_statistics", "score", "prune", "evaluate_model")
    compare_recipe(tiny_recipe(folder, **chosen))
    fewer = compare_recipe(tiny_recipe(folder, **chosen | {"compare": {}})).results  # more may be asked for later
    assert fewer is not None
    assert fewer.num_seeds == 1


def test_the_costs_of_criteria_are_measured_and_kept(folder: Path) -> None:
    images = {"mine": {"num_images": 6, "nodes": 2, "check_images": 0}, "score": {"num_images": 12}}
    first = run_recipe(tiny_recipe(folder, **images)).results
    assert first is not None
    costs = {cost.criterion: cost for cost in first.costs}
    assert costs["path"].mining_seconds is not None
    assert costs["path"].mining_seconds > 0
    assert costs["random"].seconds < costs["path"].seconds
    assert costs["random"].forward_passes == 0
    work = costs["path"].forward_passes
    assert work is not None
    row = next(row for row in first.rows if row.criterion == "path")
    assert work == pytest.approx(row.forward_passes.mining + row.forward_passes.scoring)
    again = run_recipe(tiny_recipe(folder, **images)).results
    assert again is not None
    assert again.costs == first.costs


def test_an_interrupted_run_keeps_what_is_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, calls = evaluation.evaluate_model, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["description"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(evaluation, "evaluate_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(tiny_recipe(folder))
    done = [json.loads(line)["variant_id"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert done == calls[:3]
    monkeypatch.setattr(mining, "locate_paths", refuse)
    result = run_recipe(tiny_recipe(folder))
    assert len(result.metrics) == 17
    assert calls[4:] == [row["variant_id"] for row in result.metrics][3:]


def test_two_processes_find_what_one_finds(folder: Path) -> None:
    mine = {"num_images": 7, "nodes": 2, "batch_size": 2, "shard_size": 2}  # four shards, of which the last is short
    mine |= {"targets": "prediction", "check_images": 4}  # both are stages of all processes
    alone = run_recipe(tiny_recipe(folder, mine=mine))
    recipe = folder / "shared.yaml"
    recipe.write_text(tiny_recipe(folder, mine=mine, output=str(folder / "shared")).to_yaml(), encoding="utf-8")
    launch("run", str(recipe))
    together = [json.loads(line) for line in (folder / "shared" / "metrics.jsonl").read_text().splitlines()]
    for one, two in zip(alone.metrics, together, strict=True):
        assert two["variant_id"] == one["variant_id"]
        assert (two["num_images"], two["top1"], two["per_class"]) == (one["num_images"], one["top1"], one["per_class"])
        assert two["nll"] == pytest.approx(one["nll"], rel=1e-6)
    for tokens in ("all", "class"):
        first, second = (folder / name / "mined" / tokens for name in ("run", "shared"))
        ours, theirs = PathSet.load(first / "paths.parquet"), PathSet.load(second / "paths.parquet")
        assert torch.equal(ours.indices, theirs.indices)
        assert torch.equal(ours.paths, theirs.paths)
        one, two = ClassStats.load(first / "stats.safetensors"), ClassStats.load(second / "stats.safetensors")
        assert one.num_images.tolist() == two.num_images.tolist()
        assert one.num_images.sum() == 7
        for kind in ("count", "mass", "published-mass"):
            torch.testing.assert_close(one.sums(kind), two.sums(kind), rtol=1e-6, atol=0)
    assert not list((folder / "shared" / "mining").iterdir())


def test_processes_fit_a_deleted_checkpoint_again_together(folder: Path) -> None:
    recipe = folder / "tiny.yaml"
    shared = tiny_recipe(folder, score={"criteria": ["magnitude-l2"]}, compensation=["mean"], prune={"save": "all"})
    recipe.write_text(shared.to_yaml(), encoding="utf-8")
    (checkpoint,) = (run_recipe(shared).folder / "pruned").iterdir()
    weights = (checkpoint / "model.safetensors").read_bytes()
    shutil.rmtree(checkpoint)
    (folder / "run" / "statistics.safetensors").unlink()  # a stage of all processes, which fitting comes back to
    launch("run", str(recipe))
    assert (checkpoint / "model.safetensors").read_bytes() == weights


def test_covariances_are_collected_once_and_only_for_a_recipe_that_needs_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, collected = scoring.collect_statistics, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        collected.append(kwargs["covariance"])
        return collect(*args, **kwargs)

    monkeypatch.setattr(scoring, "collect_statistics", watched)
    score = {"criteria": ["variance"], "num_images": 12}
    run_recipe(tiny_recipe(folder, score=score, compensation=["mean"]))
    run_recipe(tiny_recipe(folder, score=score, compensation=["mean", "least-squares"]), overwrite=True)
    assert collected == [False, True]


def test_every_compensation_is_a_row_and_a_fit_comes_nearer_to_the_dense_model(folder: Path) -> None:
    compensations = ["none", "mean", "least-squares", {"name": "sequential", "ridge": 0.01}]
    score = {"criteria": ["variance"], "num_images": None}
    recipe = tiny_recipe(folder, score=score, compensation=compensations, prune={"ratio": [0.5], "save": "all"})
    result = run_recipe(recipe)
    dense, *fitted = result.metrics
    assert [row["compensation"] for row in fitted] == ["none", "mean", "least-squares", "sequential"]
    assert re.fullmatch(r"variance--sequential-[0-9a-f]{8}--0.5", fitted[-1]["variant_id"])
    errors = [abs(row["nll"] - dense["nll"]) for row in fitted]
    assert errors[3] < errors[1] < errors[0]
    assert len(list((result.folder / "pruned").iterdir())) == 4


def test_another_calibration_set_makes_another_sequential_model(folder: Path) -> None:
    def key_with(num_images: int) -> str:
        recipe = tiny_recipe(folder, score={"num_images": num_images}, output=str(folder / f"run{num_images}"))
        opened = open_experiment(recipe)
        variant = Variant(parse_criterion("magnitude-l2"), parse_compensation("sequential"), Budget("neurons", 0.5))
        return opened.pruning.artifact(variant, opened.planner.plan(variant).plan).key

    assert key_with(6) != key_with(12)


def test_another_recipe_is_refused_and_overwriting_keeps_what_still_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_recipe(tiny_recipe(folder))
    changed = tiny_recipe(folder, prune={"ratio": [0.75]})
    with pytest.raises(RecipeError, match=r"holds the results of another recipe \(prune.ratio: .*--overwrite"):
        run_recipe(changed)
    monkeypatch.setattr(mining, "locate_paths", refuse)  # mining does not depend on the budget
    assert {row["budget"] for row in run_recipe(changed, overwrite=True).metrics} == {0.0, 0.75}


def test_a_recipe_that_asks_for_more_of_the_same_goes_on_from_what_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = {"criteria": ["magnitude-l2"], "num_images": 12}
    first = run_recipe(tiny_recipe(folder, score=score, compensation="none", prune={"ratio": 0.5}))
    evaluate, evaluated = evaluation.evaluate_model, []

    def watched(*args: Any, description: str, **kwargs: Any) -> Any:
        evaluated.append(description)
        return evaluate(*args, description=description, **kwargs)

    monkeypatch.setattr(evaluation, "evaluate_model", watched)
    more = {
        "score": {"criteria": ["random", "magnitude-l2"], "num_images": 12},
        "compensation": ["none", "mean"],
        "prune": {"ratio": [0.25, 0.5], "save": ["path", "random"]},
        "recover": short_training(1) | {"criteria": "random", "compensations": "none"},
    }
    second = run_recipe(tiny_recipe(folder, **more))
    assert len(evaluated) == len(set(evaluated)) == 2 * 2 * 2 - 1 + 2  # but for one variant, and two recovered
    known = {row["variant_id"]: row["nll"] for row in second.metrics}
    assert all(known[row["variant_id"]] == row["nll"] for row in first.metrics)
    with pytest.raises(RecipeError, match=r"another recipe \(score.criteria: .*; compensation: .*; recover"):
        run_recipe(tiny_recipe(folder, **more | {"score": score, "compensation": "none", "recover": None}))


def test_checkpoints_that_prune_saved_outlive_later_runs(folder: Path) -> None:
    recipe = tiny_recipe(folder, score={"criteria": ["magnitude-l2"], "num_images": 12})
    saved = {checkpoint: (checkpoint / "model.safetensors").read_bytes() for checkpoint in prune_recipe(recipe)}
    for _ in range(2):  # the second has all of its rows and looks at no model
        run_recipe(recipe)
        assert saved == {checkpoint: (checkpoint / "model.safetensors").read_bytes() for checkpoint in saved}


def test_a_checkpoint_of_an_overwritten_recipe_goes(folder: Path) -> None:
    score = {"criteria": ["random"], "num_images": 12}
    checkpoints = prune_recipe(tiny_recipe(folder, score=score))
    run_recipe(tiny_recipe(folder, score=score, seed=1), overwrite=True)
    assert not any(checkpoint.exists() for checkpoint in checkpoints)


def test_what_scores_and_fits_took_is_known_after_further_runs(folder: Path) -> None:
    settings = {"score": {"criteria": ["variance"], "num_images": 12}, "compensation": "mean"}
    for _ in range(2):  # the second computes nothing
        run_recipe(tiny_recipe(folder, **settings, prune={"ratio": [0.5]}))
    *_, one, other = run_recipe(tiny_recipe(folder, **settings, prune={"ratio": [0.5, 0.25]})).metrics
    assert one["forward_passes"]["scoring"] == other["forward_passes"]["scoring"] is not None
    assert other["forward_passes"]["statistics"] > 0


def test_a_pruned_model_is_evaluated_by_the_recipe_that_made_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    recipe = tiny_recipe(folder, output=None, score={"criteria": ["magnitude-l2"], "num_images": 12})
    *_, pruned = prune_recipe(recipe)
    found = evaluate_recipe(recipe.model_copy(update={"model": ModelConfig(name=str(pruned))}))
    assert found.num_params < evaluate_recipe(recipe).num_params
    assert set(Path("runs").iterdir()) == {Path("runs/tiny"), Path("runs/tiny-eval")}


def test_a_recipe_that_failed_before_its_first_result_can_be_corrected(folder: Path) -> None:
    with pytest.raises(ValueError, match="split 'nowhere'"):
        run_recipe(tiny_recipe(folder, data={"source": str(folder / "data"), "splits": {"evaluate": "nowhere"}}))
    run_recipe(tiny_recipe(folder))


def test_a_dry_run_does_not_bind_the_folder_to_its_budget_but_mining_binds_its_settings(folder: Path) -> None:
    plan_recipe(tiny_recipe(folder, prune={"ratio": [0.75]}))
    plan_recipe(tiny_recipe(folder))
    with pytest.raises(RecipeError, match=r"another recipe \(mine.nodes: 2 there, 3 asked\)"):
        plan_recipe(tiny_recipe(folder, mine={"num_images": 6, "nodes": 3, "check_images": 0}))


@pytest.mark.parametrize("change", ["weights", "transform", "architecture"])
def test_a_changed_model_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    mine_recipe(tiny_recipe(folder))
    config_file = folder / "model" / "config.json"
    if change == "weights":
        model = load_pruned(folder / "model")
        with torch.no_grad():
            adapt(model).sites[0].down.weight.add_(0.1)
        save_pruned(model, folder / "model")
    else:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        if change == "transform":
            config["pathprune"]["data_config"]["mean"] = [0.4, 0.5, 0.5]
        else:
            config["pathprune"]["base"]["args"]["num_heads"] = 3
        config_file.write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr(mining, "locate_paths", refuse)
    with pytest.raises(AssertionError, match="computed again"):
        mine_recipe(tiny_recipe(folder))


def test_interrupted_mining_goes_on_where_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, calls = {"num_images": 12, "nodes": 2, "batch_size": 3, "shard_size": 3, "check_images": 0}, []
    locate = mining.locate_paths

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[2].tolist())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return locate(*args, **kwargs)

    monkeypatch.setattr(mining, "locate_paths", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mine_recipe(tiny_recipe(folder, mine=mine))
    (stats,) = mine_recipe(tiny_recipe(folder, mine=mine, score={"criteria": ["path"]}), overwrite=True).files
    assert len(calls) == 3 + 2 + 1  # the last, on one image, counts the work
    assert calls[3] == calls[2]
    assert ClassStats.load(stats).num_images.tolist() == [4, 4, 4]
    monkeypatch.setattr(mining, "locate_paths", refuse)
    mine_recipe(tiny_recipe(folder, mine=mine, score={"criteria": ["path"]}))


@pytest.mark.parametrize("name", ["thesis.tex", "recipe.yaml"])
def test_a_folder_that_is_no_run_is_left_alone(folder: Path, name: str) -> None:
    (folder / "run").mkdir()
    (folder / "run" / name).write_text("name: mine # and dear to me")
    for overwrite in (False, True):
        with pytest.raises(RecipeError, match="is not empty and is no run folder"):
            run_recipe(tiny_recipe(folder), overwrite=overwrite)
    assert "dear" in (folder / "run" / name).read_text()


def test_overwriting_leaves_no_model_of_the_earlier_recipe(folder: Path) -> None:
    run_recipe(tiny_recipe(folder))
    result = run_recipe(tiny_recipe(folder, prune={"ratio": 0.5}, compensation="mean"), overwrite=True)
    assert [checkpoint.name for checkpoint in (result.folder / "pruned").iterdir()] == ["path--mean--0.5"]
    assert {plan.stem for plan in (result.folder / "plans").iterdir()} == {
        row["variant_id"] for row in result.metrics if row["criterion"]
    }


def test_an_artifact_that_cannot_be_read_is_made_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = run_recipe(tiny_recipe(folder))
    scores = first.folder / "scores" / "path.safetensors"
    scores.write_bytes(scores.read_bytes()[:30])
    assert json.dumps(run_recipe(tiny_recipe(folder)).metrics) == json.dumps(first.metrics)
    assert "path.safetensors cannot be read and is computed again" in caplog.text


def test_speedups_are_those_of_the_latencies_beside_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_millisecond_per_neuron(models: Any, images: Any, **_: Any) -> dict[str, LatencyResult]:
        neurons = {name: sum(site.width for site in adapt(model).sites) for name, model in models.items()}
        return {name: LatencyResult((number,) * 3, len(images), "cpu", 1) for name, number in neurons.items()}

    monkeypatch.setattr(timings, "measure_latency", one_millisecond_per_neuron)
    for row in run_recipe(tiny_recipe(folder)).metrics:
        assert row["latency_ms"] == 96 * (1 - row["budget"])
        assert row["speedup"] == 1 / (1 - row["budget"])


def test_classes_are_numbered_by_the_models_names(folder: Path) -> None:
    expected = run_recipe(tiny_recipe(folder)).metrics[0]["per_class"]
    for split, seeds in (("train", range(24)), ("test", range(100, 130))):
        table = rows(seeds)
        words = [["cat", "dog", "owl"][label] for label in table["label"]]
        order = ["owl", "cat", "dog"]
        feature = datasets.ClassLabel(names=order)
        table = table.remove_columns("label").add_column("label", [order.index(word) for word in words])
        table.cast_column("label", feature).to_parquet(str(folder / "data" / f"{split}.parquet"))
    assert run_recipe(tiny_recipe(folder, output=str(folder / "again"))).metrics[0]["per_class"] == expected


def test_evaluation_images_may_not_be_mined_or_calibrated_on(folder: Path) -> None:
    shared = {"source": str(folder / "data"), "splits": {"calibrate": "test[:5]", "evaluate": "test"}}
    with pytest.raises(DataError, match="images used to calibrate are also evaluation images"):
        run_recipe(tiny_recipe(folder, data=shared))


def test_a_saved_pruned_model_reloads_to_the_accuracy_reported(folder: Path) -> None:
    result = run_recipe(tiny_recipe(folder))
    reported = {row["variant_id"]: row for row in result.metrics}
    saved = sorted((result.folder / "pruned").iterdir())
    assert len(saved) == 2 * 2
    for checkpoint in saved:
        again = evaluate_recipe(
            tiny_recipe(folder, model={"name": str(checkpoint)}, output=str(folder / checkpoint.name))
        )
        row = reported[checkpoint.name]
        for key in ("top1", "num_params", "macs", "kept_widths"):
            assert again.to_json()[key] == row[key]
        assert again.nll == pytest.approx(row["nll"], rel=1e-5)


def test_a_saved_model_says_how_it_was_made_and_how_it_did_without_paths_of_this_machine(folder: Path) -> None:
    result = run_recipe(tiny_recipe(folder, prune={"ratio": 0.5}, compensation="mean"))
    (checkpoint,) = (result.folder / "pruned").iterdir()
    config = read_pruned_config(checkpoint)
    dense, row = result.metrics[0], next(row for row in result.metrics if row["variant_id"] == checkpoint.name)
    assert config.metrics is not None
    for key in ("top1", "top1_ci", "macs", "latency_ms"):
        assert (config.metrics["dense"][key], config.metrics["pruned"][key]) == (dense[key], row[key])
    assert config.metrics["data"] == {"source": "data", "split": "test"}
    assert config.provenance["recipe_hash"] == key_of(**config.provenance["recipe"])
    assert config.provenance["criterion"]["name"] == "path"
    assert config.provenance["compensation"] == {"name": "mean"}
    assert row["checkpoint_bytes"] == (checkpoint / "model.safetensors").stat().st_size
    for name in ("config.json", "README.md"):
        assert str(folder) not in (checkpoint / name).read_text(encoding="utf-8")
    written = {file: file.stat().st_mtime_ns for file in checkpoint.iterdir()}
    run_recipe(tiny_recipe(folder, prune={"ratio": 0.5}, compensation="mean"))
    assert {file: file.stat().st_mtime_ns for file in checkpoint.iterdir()} == written


def test_planning_and_pruning_evaluate_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "evaluate_model", refuse)
    recipe = tiny_recipe(folder)
    plans = plan_recipe(recipe)
    assert [plan.neurons_removed for plan in plans.values()] == [0.25] * 4 + [0.5] * 4
    assert not (folder / "run" / "pruned").exists()
    widths = [[site.width for site in adapt(load_pruned(checkpoint)).sites] for checkpoint in prune_recipe(recipe)]
    assert widths == 8 * [[36, 36]] + 8 * [[24, 24]]


def test_unreadable_images_are_left_out_of_mining_and_accuracy(folder: Path) -> None:
    rows(range(24), broken=(0, 1)).to_parquet(str(folder / "data" / "train.parquet"))
    rows(range(100, 130), broken=(7,)).to_parquet(str(folder / "data" / "test.parquet"))
    data = {"source": str(folder / "data"), "max_unreadable": 0.1}
    result = run_recipe(tiny_recipe(folder, data=data, mine={"num_images": None, "nodes": 2}))
    assert {row["num_images"] for row in result.metrics} == {29}
    stats = open_experiment(tiny_recipe(folder, data=data, mine={"num_images": None, "nodes": 2})).mining.stats("all")
    assert stats.num_images.tolist() == [7, 7, 8]


def test_variants_have_distinct_ids_even_where_only_options_differ() -> None:
    recipe = tiny_recipe(Path("x"), score={"criteria": ["path", {"name": "path", "importance": "count"}]})
    ids = [variant.id for variant in variants(recipe)]
    assert len(set(ids)) == len(ids) == 8
    variant = Variant(
        parse_criterion({"name": "path", "reduce": "max"}), parse_compensation("mean"), Budget("neurons", 0.5)
    )
    assert re.fullmatch(r"path-[0-9a-f]{8}--mean--0.5", variant.id)
    assert label(parse_criterion("path")) == "path"


def test_the_work_of_every_step_is_counted_once_and_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(
        folder,
        score={"criteria": ["path", "taylor"], "num_images": 12},
        compensation=["none", "least-squares", "sequential"],
        prune={"ratio": 0.5},
    )
    result = run_recipe(recipe)
    work = {(row["criterion"], row["compensation"]): row["forward_passes"] for row in result.metrics[1:]}
    assert result.metrics[0]["forward_passes"] is None
    for (criterion, compensation), steps in work.items():
        assert (steps["mining"] > 6) == (criterion == "path")  # six images
        assert (steps["scoring"] > 12) == (criterion == "taylor")  # forward and backward
        assert (steps["statistics"] > 12) == (compensation == "least-squares")
        assert (steps["fitting"] > 12) == (compensation == "sequential")
        assert steps["damage"] == 0
    assert work["taylor", "none"]["scoring"] < 3 * 12 + 1
    monkeypatch.setattr(context, "MacCounter", refuse)
    assert run_recipe(recipe).metrics == result.metrics
