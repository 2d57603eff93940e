"""Groups of models to measure side by side, from recipes, run folders and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pathprune.keys import key_of
from pathprune.models.checkpoint import load_pruned
from pathprune.models.pruned_config import is_pruned_folder, read_pruned_config
from pathprune.pruning import apply_plan
from pathprune.recipe import load_recipe
from pathprune.stages.experiment import Experiment, open_experiment
from pathprune.stages.variants import label, variants


@dataclass(frozen=True)
class Group:
    """A dense model and narrower models of the same architecture, by name, on the CPU."""

    name: str
    dense: nn.Module
    pruned: Mapping[str, nn.Module]
    input_size: tuple[int, int, int]

    @property
    def models(self) -> dict[str, nn.Module]:
        return {"dense": self.dense, **self.pruned}


def open_groups(
    targets: Sequence[str], overrides: Sequence[str] = (), *, overwrite: bool = False
) -> tuple[list[Group], Path]:
    """Return the models that `targets` name, and the folder for the measurements.

    A target is a recipe, a run folder (which stands for its recipe), or a checkpoint that pathprune wrote. Variants of
    one recipe with equal widths are measured once. Raises `ValueError` for any other target.
    """
    groups: dict[str, Group] = {}
    folder = None
    for target in targets:
        path, settings = Path(target), list(overrides)
        if is_pruned_folder(path):
            _add_checkpoint(groups, path)
            continue
        if path.is_dir() and (path / "recipe.yaml").exists():
            target = str(path / "recipe.yaml")
            settings.append(f"output={path}")
        elif path.is_dir():
            raise ValueError(f"{path} is neither a checkpoint that pathprune wrote nor a run folder")
        experiment = open_experiment(load_recipe(target, settings), overwrite=overwrite)
        groups[target] = _group_of(experiment)
        folder = folder or experiment.folder.path
    return list(groups.values()), folder or Path("runs") / "bench"


def _add_checkpoint(groups: dict[str, Group], path: Path) -> None:
    """Add a checkpoint, in place, to the group of its architecture."""
    config = read_pruned_config(path)
    architecture = config.base
    key = key_of(architecture=[architecture.name, dict(architecture.args)], size=config.data_config["input_size"])
    group = groups.get(key)
    if group is None:
        dense = architecture.build(data_config=config.data_config, class_names=config.class_names)
        group = Group(architecture.name, dense, {}, tuple(config.data_config["input_size"]))
    groups[key] = Group(group.name, group.dense, {**group.pruned, str(path): load_pruned(path)}, group.input_size)


def _group_of(experiment: Experiment) -> Group:
    """Return a recipe's model with its variants, one for each set of widths."""
    model = experiment.context.model
    by_widths: dict[tuple[int, ...], tuple[str, nn.Module]] = {}
    for variant in variants(experiment.recipe):
        plan = experiment.planner.plan(variant).plan
        widths = tuple(len(kept) for kept in plan.kept.values())
        if widths not in by_widths:
            name = f"{label(variant.criterion)} at {variant.budget}"
            by_widths[widths] = name, apply_plan(model.adapted, plan=plan).model.cpu()
    size = tuple(model.data_config["input_size"])
    return Group(experiment.recipe.name, model.module.cpu(), dict(by_widths.values()), size)
