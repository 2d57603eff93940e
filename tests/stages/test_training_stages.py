"""Training, recovery in rounds, and fine-tuning through the pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from interception import launch, refuse, refuse_steps
from tiny import NAMES, short_training, tiny_recipe

from pathprune.data import DataError
from pathprune.models.adapt import adapt
from pathprune.models.checkpoint import load_pruned
from pathprune.models.pruned_config import read_pruned_config
from pathprune.pipeline import (
    evaluate_recipe,
    finetune_recipe,
    prune_recipe,
    run_recipe,
)
from pathprune.recipe import Recipe, RecipeError, load_recipe
from pathprune.stages import pruning
from pathprune.stages import training as training_stage
from pathprune.stages.experiment import open_experiment
from pathprune.stages.training import Training


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_finetuning_learns_and_saves_a_model_that_loads(folder: Path, precision: str) -> None:
    before = evaluate_recipe(tiny_recipe(folder, output=str(folder / "before"), mixed_precision=precision))
    result = finetune_recipe(tiny_recipe(folder, train=short_training(12), mixed_precision=precision))
    assert result.metrics[0]["top1"] >= 0.8 > before.top1
    model = load_pruned(result.folder / "model")
    assert model.pretrained_cfg["label_names"] == tuple(NAMES)
    assert not list(result.folder.glob("*.pt"))


def test_the_seed_of_a_recipe_is_that_of_its_training(folder: Path) -> None:
    recipes = [
        tiny_recipe(folder, train=short_training(1), seed=seed, output=str(folder / str(seed))) for seed in (0, 1)
    ]
    first, second = (finetune_recipe(recipe).metrics[0]["nll"] for recipe in recipes)
    assert first != second


@pytest.mark.parametrize("change", [{"seed": 1}, {"mixed_precision": "bf16"}], ids=["seed", "precision"])
def test_overwriting_trains_again_for_another_seed_or_precision(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    finetune_recipe(tiny_recipe(folder, train=short_training(1)))
    monkeypatch.setattr(training_stage, "train", refuse)
    AcceleratorState._reset_state()  # as in another process
    with pytest.raises(AssertionError, match="computed again"):
        finetune_recipe(tiny_recipe(folder, train=short_training(1), **change), overwrite=True)


def test_a_precision_that_is_not_the_processs_is_refused(folder: Path) -> None:
    evaluate_recipe(tiny_recipe(folder))
    with pytest.raises(ValueError, match="mixed_precision is 'bf16' in the recipe and 'no' in this process's Accelera"):
        evaluate_recipe(tiny_recipe(folder, mixed_precision="bf16"))


def test_a_given_accelerator_is_used(folder: Path) -> None:
    accelerator = Accelerator(mixed_precision="bf16")
    recipe = tiny_recipe(folder, mixed_precision="bf16")
    assert open_experiment(recipe, accelerator=accelerator).context.accelerator is accelerator


def test_the_demos_own_recipe_trains(folder: Path) -> None:
    data = ["data.source=demo", "data.splits.train=train[:64]", "evaluate.num_images=32"]
    quick = ["train.epochs=1", "train.all_patches_epochs=0", "model.args.depth=1", f"output={folder / 'demo'}"]
    result = finetune_recipe(load_recipe("train-demo", [*data, *quick]))
    assert load_pruned(result.folder / "model").num_classes == 10


def test_finetuning_a_second_time_trains_no_more_even_from_random_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 12, "num_heads": 2}
    random = {"name": "vit_tiny_patch16_224", "pretrained": False, "num_classes": 3, "args": args}
    first = finetune_recipe(tiny_recipe(folder, model=random, train=short_training(2)))
    monkeypatch.setattr(training_stage, "train", refuse)
    assert finetune_recipe(tiny_recipe(folder, model=random, train=short_training(2))).metrics == first.metrics


def recovered_recipe(folder: Path, **recover: Any) -> Recipe:
    """A recipe with two variants, each recovered in two short epochs."""
    return tiny_recipe(
        folder,
        score={"criteria": ["path", "magnitude-l2"], "num_images": 12},
        prune={"ratio": 0.5},
        compensation="none",
        recover={**short_training(2), "learning_rate": 0.003, **recover},
    )


def test_recovered_variants_are_rows_beside_the_unrecovered_and_load_to_what_they_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_recipe(recovered_recipe(folder))
    by_id = {row["variant_id"]: row for row in result.metrics}
    assert list(by_id) == [
        "dense",
        *("path--none--0.5", "path--none--0.5--recovered"),
        *("magnitude-l2--none--0.5", "magnitude-l2--none--0.5--recovered"),
    ]
    for variant_id in ("path--none--0.5", "magnitude-l2--none--0.5"):
        before, after = by_id[variant_id], by_id[f"{variant_id}--recovered"]
        for key in ("kept_widths", "macs", "num_params", "latency_ms", "budget"):
            assert after[key] == before[key]
        assert before["recovery"] is None
        losses = [record["loss"] for record in after["recovery"]["history"]]
        assert losses[1] < losses[0]
        again = evaluate_recipe(
            tiny_recipe(
                folder, model={"name": str(result.folder / after["checkpoint"])}, output=str(folder / variant_id)
            )
        )
        assert again.top1 == after["top1"]
        assert again.nll == pytest.approx(after["nll"], rel=1e-5)
    dense = load_pruned(folder / "model")  # the teacher is not trained
    assert by_id["dense"]["num_params"] == sum(parameter.numel() for parameter in dense.parameters())
    refuse_steps(monkeypatch, "collect_statistics", "score", "prune", "evaluate_model", "save_pruned")
    monkeypatch.setattr(training_stage, "train", refuse)
    assert run_recipe(recovered_recipe(folder)).metrics == result.metrics
    assert not (folder / "run" / "training").exists() or not list((folder / "run" / "training").iterdir())


def test_recovery_starts_from_the_saved_checkpoint_where_there_is_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recovered_recipe(folder, epochs=1)
    fresh = run_recipe(recipe).metrics
    pruned = recipe.model_copy(update={"recover": None, "prune": recipe.prune.model_copy(update={"save": ("all",)})})
    run_recipe(pruned, overwrite=True)
    monkeypatch.setattr(pruning, "prune", refuse)
    again = run_recipe(recipe.model_copy(update={"prune": pruned.prune}), overwrite=True).metrics
    assert [row["top1"] for row in again] == [row["top1"] for row in fresh]
    assert [row["nll"] for row in again] == [row["nll"] for row in fresh]


def test_a_training_of_other_processes_is_another(folder: Path) -> None:
    """Each takes batches of the config's size, so that the steps and what they see differ."""
    opened = open_experiment(recovered_recipe(folder))
    config = opened.recipe.recover
    assert config is not None
    two_processes: Any = SimpleNamespace(num_processes=2)
    shared = Training(replace(opened.context, accelerator=two_processes), opened.splits)
    assert shared.key(config, start="x") != opened.training.key(config, start="x")


def test_two_processes_train_as_one_does_on_twice_the_batch(folder: Path) -> None:
    """Also where a part of the model, here the head, is none of what is learned from."""
    settings = {"labels": 0, "distill": {"logits": 0, "hidden": 1}, "criteria": "magnitude-l2", "epochs": 1}
    *_, alone = run_recipe(recovered_recipe(folder, **settings, batch_size=8)).metrics
    recipe, shared = folder / "shared.yaml", recovered_recipe(folder, **settings, batch_size=4)
    output = {"output": str(folder / "shared")}
    recipe.write_text(shared.model_copy(update=output).to_yaml(), encoding="utf-8")
    launch("run", str(recipe))
    *_, before, together = map(json.loads, (folder / "shared" / "metrics.jsonl").read_text().splitlines())
    assert together["variant_id"] == alone["variant_id"] == "magnitude-l2--none--0.5--recovered"
    assert together["nll"] == pytest.approx(alone["nll"], rel=1e-4)
    assert abs(before["nll"] - alone["nll"]) > 1e-3


def test_only_the_variants_asked_for_are_recovered(folder: Path) -> None:
    rows = run_recipe(recovered_recipe(folder, criteria="magnitude-l2", epochs=1)).metrics
    assert [row["variant_id"] for row in rows if row["recovery"]] == ["magnitude-l2--none--0.5--recovered"]
    with pytest.raises(RecipeError, match=r"recover.criteria: 'pathh' is not in the recipe; choose from all, path"):
        recovered_recipe(folder, criteria="pathh")


@pytest.mark.parametrize("rescore", [True, False])
def test_pruning_in_rounds_ends_at_the_same_widths_and_goes_on_after_a_stop(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rescore: bool
) -> None:
    recipe = recovered_recipe(folder, criteria="path", rounds=3, rescore=rescore, epochs=1)
    train, trained = training_stage.train, []

    def stops_in_the_third(*arguments: Any, **settings: Any) -> Any:
        trained.append([site.width for site in adapt(arguments[0]).sites])
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(*arguments, **settings)

    monkeypatch.setattr(training_stage, "train", stops_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe)
    row = next(row for row in run_recipe(recipe).metrics if row["recovery"])
    assert trained == [[40, 40], [32, 32], [24, 24], [24, 24]]
    assert [record["round"] for record in row["recovery"]["history"]] == [1, 2, 3]
    kept = read_pruned_config(folder / "run" / row["checkpoint"]).kept
    plan = json.loads((folder / "run" / "plans" / "path--none--0.5.json").read_text(encoding="utf-8"))
    once = {site: entry["kept"] for site, entry in plan.items()}
    assert kept is not None
    assert (kept == once) != rescore  # scored once, it is the neurons of the plan that stay
    assert not (folder / "run" / "recovering" / "path--none--0.5").exists()
    assert not any("recovering" in name for name in json.loads((folder / "run" / "keys.json").read_text()))


def test_validation_images_may_not_be_trained_on(folder: Path) -> None:
    data = {"source": str(folder / "data"), "splits": {"validation": "train[:6]", "train": "train"}}
    with pytest.raises(DataError, match="24 images used to train are also validation images"):
        finetune_recipe(tiny_recipe(folder, data=data, train=short_training(1)))
    data["splits"] = {"validation": "train[:6]", "train": "train[6:]"}
    result = finetune_recipe(
        tiny_recipe(folder, data=data, train=short_training(3) | {"patience": 1, "learning_rate": 1e-9})
    )
    history = json.loads((result.folder / "history.json").read_text(encoding="utf-8"))
    assert len(history) == 2  # the second epoch is no better than the first


def test_a_pruned_checkpoint_can_be_finetuned_with_its_dense_model_as_teacher(folder: Path) -> None:
    recipe = tiny_recipe(folder, prune={"ratio": 0.5}, score={"criteria": ["magnitude-l2"]}, compensation="none")
    (checkpoint,) = prune_recipe(recipe)
    distill = {"labels": 0, "distill": {"teacher": str(folder / "model"), "hidden": 1.0}}
    settings: dict[str, Any] = {"model": {"name": str(checkpoint)}, "output": str(folder / "tuned")}
    result = finetune_recipe(tiny_recipe(folder, train=short_training(2) | distill, **settings))
    assert result.metrics[0]["kept_widths"] == [24, 24]
    with pytest.raises(ValueError, match="distill needs a teacher"):
        finetune_recipe(tiny_recipe(folder, train=short_training(1) | {"distill": {}}, **settings), overwrite=True)


def test_trackers_of_a_recipe_are_written_and_unknown_ones_refused(folder: Path) -> None:
    result = finetune_recipe(tiny_recipe(folder, train=short_training(1), trackers="tensorboard"))
    assert list((result.folder / "logs" / "tiny-finetune").glob("events*"))
    with pytest.raises(ValueError, match=r"tracker 'tensorbord' is not installed; installed are: .*tensorboard"):
        finetune_recipe(tiny_recipe(folder, train=short_training(1), trackers="tensorbord"))
