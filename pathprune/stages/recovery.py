"""Pruned variants, recovered: pruned and trained in one round, or a share of the neurons at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pathprune.keys import key_of
from pathprune.models.checkpoint import load_pruned
from pathprune.models.pruned_config import read_pruned_config
from pathprune.pruning import PrunePlan
from pathprune.pruning.rounds import composed, keep_all, keep_best, widths_after
from pathprune.recipe import Recipe
from pathprune.recovery import RecoverConfig
from pathprune.stages.experiment import Experiment
from pathprune.stages.provenance import made_by
from pathprune.stages.training import forget_state, train_model, training_key
from pathprune.stages.variants import Variant


@dataclass(frozen=True)
class Recovered:
    """A recovered variant: its checkpoint, what that was made from, and which neurons of the dense model are left."""

    folder: Path
    key: str
    plan: PrunePlan
    history: list[dict[str, Any]]  # a record per epoch and validation, with the round

    def model(self) -> nn.Module:
        """Load the checkpoint."""
        return load_pruned(self.folder)


def is_recovered(recipe: Recipe, variant: Variant) -> bool:
    """Whether the recipe asks to train this variant."""
    config = recipe.recover
    if config is None:
        return False
    asked = {variant.criterion.name: config.criteria, variant.compensation.name: config.compensations}
    return all(name in names or "all" in names for name, names in asked.items())


def recover(experiment: Experiment, variant: Variant, plan: PrunePlan) -> Recovered:
    """Prune to the widths of `plan` and train, in as many rounds as the recipe says; what is there already is loaded.

    The dense model is the teacher. In one round the neurons of `plan` stay. In several, each round removes an equal
    share of what is to go, by the scores of the model that the round before left (or, not rescoring, of the dense one).
    """
    config = experiment.recipe.recover
    assert config is not None, "is_recovered() says so"
    *keys, last_key = _keys(experiment, config, variant, plan)
    name = f"recovered/{variant.id}"
    if not experiment.folder.is_current(name, key=last_key):
        work = f"recovering/{variant.id}"
        previous: Path | None = None
        for number, key in enumerate(keys, start=1):
            checkpoint = f"{work}/round-{number}/model"
            if not experiment.folder.is_current(checkpoint, key=key):
                _round(experiment, variant, plan, number=number, previous=previous, name=checkpoint, key=key)
            previous = experiment.folder.path / checkpoint
        _round(experiment, variant, plan, number=config.rounds, previous=previous, name=name, key=last_key)
        experiment.folder.forget(work)
    folder = experiment.folder.path / name
    return Recovered(folder, last_key, _plan_of(folder, experiment), _history_of(folder))


def _keys(experiment: Experiment, config: RecoverConfig, variant: Variant, plan: PrunePlan) -> list[str]:
    """The key of every round's model, each made from that of the round before."""
    rescored = config.rounds > 1 and config.rescore
    key = key_of(
        model=experiment.model_key,
        pruned=experiment.variant_key(variant, plan),
        scores=experiment.score_key(variant.criterion) if rescored else None,
    )
    keys = []
    for number in range(1, config.rounds + 1):
        key = training_key(experiment, config, start=key_of(previous=key, round=number))
        keys.append(key)
    return keys


def _round(
    experiment: Experiment,
    variant: Variant,
    plan: PrunePlan,
    *,
    number: int,
    previous: Path | None,
    name: str,
    key: str,
) -> None:
    """Prune what the round before left (the dense model, in the first), train it, and save it as `name`."""
    config = experiment.recipe.recover
    assert config is not None
    if previous is None:
        stage, left, history = experiment, keep_all(experiment.adapted.sites), []
    else:
        stage = experiment.of_model(load_pruned(previous), folder=str(previous.parent))
        left, history = _plan_of(previous, experiment), _history_of(previous)
    if config.rounds == 1:
        now = plan
    else:
        if config.rescore:
            scores = stage.scores(variant.criterion)
        else:
            dense = experiment.scores(variant.criterion)
            scores = {site: dense[site][columns] for site, columns in left.kept.items()}
        widths = widths_after(plan, done=number, rounds=config.rounds)
        now = keep_best(scores, sites=stage.adapted.sites, widths=widths)
    model = stage.pruned(variant, now).model
    title = f"{variant.id}, round {number} of {config.rounds}" if config.rounds > 1 else variant.id
    records = train_model(experiment, model, config, name=title, key=key, teacher=experiment.model)
    history = [*history, *({"round": number, **record} for record in records)]
    whole = composed(left, now)
    experiment.save_checkpoint(
        name,
        lambda: model,
        key=key,
        kept=whole.kept,
        provenance={**made_by(experiment.recipe, variant, whole), "recovery": history},
    )
    forget_state(experiment, key=key)


def _plan_of(checkpoint: Path, experiment: Experiment) -> PrunePlan:
    """Which neurons of the dense model a checkpoint kept."""
    kept = read_pruned_config(checkpoint).kept
    assert kept is not None, "saved with it"
    whole = keep_all(experiment.adapted.sites)
    return PrunePlan({name: torch.tensor(columns) for name, columns in kept.items()}, whole.widths, whole.blocks)


def _history_of(checkpoint: Path) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = read_pruned_config(checkpoint).provenance["recovery"]
    return history
