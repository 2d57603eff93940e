"""The recovery stage: variants that are pruned and trained, in one round or a share of the neurons at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pathprune.artifacts import Artifact, ArtifactKind
from pathprune.keys import key_of
from pathprune.models.checkpoint import load_pruned
from pathprune.models.pruned_config import read_pruned_config
from pathprune.pruning import PrunePlan
from pathprune.pruning.rounds import compose_plans, interpolate_widths, keep_all, keep_best
from pathprune.recipe import Recipe
from pathprune.recovery import RecoverConfig
from pathprune.report.rows import RecoveryRecord
from pathprune.stages.checkpoints import CHECKPOINT_CODEC, Checkpoints
from pathprune.stages.experiment import Experiment
from pathprune.stages.provenance import describe_variant
from pathprune.stages.variants import Variant

RECOVERED: ArtifactKind[nn.Module] = ArtifactKind("recovered/{}", inputs=("training",), codec=CHECKPOINT_CODEC)
ROUND: ArtifactKind[nn.Module] = ArtifactKind("recovering/{}/round-{}/model", ("training",), CHECKPOINT_CODEC)


@dataclass(frozen=True)
class Recovered:
    """A recovered variant: its checkpoint, the dense model's neurons that remain, and the record of its training."""

    folder: Path
    key: str
    plan: PrunePlan
    record: RecoveryRecord

    def load(self) -> nn.Module:
        """Load the checkpoint."""
        return load_pruned(self.folder)


def is_recovered(recipe: Recipe, variant: Variant) -> bool:
    """Return True if the recipe asks to train this variant."""
    config = recipe.recover
    if config is None:
        return False
    choices = {variant.criterion.name: config.criteria, variant.compensation.name: config.compensations}
    return all(name in names or "all" in names for name, names in choices.items())


def recover(experiment: Experiment, variant: Variant, plan: PrunePlan) -> Recovered:
    """Prune to the widths of `plan` and train with the dense model as teacher, or load the stored result.

    In one round the neurons of `plan` stay. In several, each round removes an equal share of the neurons to go, by the
    scores of the model that the round before left, or of the dense model without `recover.rescore`.
    """
    config = experiment.recipe.recover
    assert config is not None, "is_recovered() says so"
    return _Recovery(experiment, config, variant, plan).run()


@dataclass(frozen=True)
class _Recovery:
    """The rounds of one variant."""

    experiment: Experiment
    config: RecoverConfig
    variant: Variant
    plan: PrunePlan

    def run(self) -> Recovered:
        folder = self.experiment.folder
        *keys, last_key = self._keys()
        artifact = RECOVERED.of(self.variant.id, training=last_key)
        if not folder.is_current(artifact):
            previous: Path | None = None
            for number, key in enumerate(keys, start=1):
                round_artifact = ROUND.of(self.variant.id, number, training=key)
                if not folder.is_current(round_artifact):
                    self._train_round(number, previous, round_artifact, key)
                previous = folder.path / round_artifact.name
            self._train_round(self.config.rounds, previous, artifact, last_key)
            folder.discard_folder(f"recovering/{self.variant.id}")
        checkpoint = folder.path / artifact.name
        record = RecoveryRecord(rounds=self.config.rounds, epochs=self.config.epochs, history=_history(checkpoint))
        return Recovered(checkpoint, last_key, self._kept_plan(checkpoint), record)

    def _keys(self) -> list[str]:
        """Return the key of every round's model; each includes the key of the round before."""
        experiment = self.experiment
        rescores = self.config.rounds > 1 and self.config.rescore
        key = key_of(
            model=experiment.context.model_key,
            pruned=experiment.pruning.artifact(self.variant, self.plan).key,
            scores=experiment.scoring.artifact(self.variant.criterion).key if rescores else None,
        )
        keys = []
        for number in range(1, self.config.rounds + 1):
            key = experiment.training.key(self.config, start=key_of(previous=key, round=number))
            keys.append(key)
        return keys

    def _train_round(self, number: int, previous: Path | None, artifact: Artifact[nn.Module], key: str) -> None:
        """Prune the model that the round before left (the dense model, in the first), train it and store it."""
        experiment, rounds = self.experiment, self.config.rounds
        if previous is None:
            stages, left, history = experiment, keep_all(experiment.context.model.adapted.sites), []
        else:
            stages = experiment.with_module(load_pruned(previous), folder=previous.parent)
            left, history = self._kept_plan(previous), _history(previous)
        plan = self.plan if rounds == 1 else self._plan_round(stages, left, number)
        model = stages.pruning.build(self.variant, plan).model
        name = f"{self.variant.id}, round {number} of {rounds}" if rounds > 1 else self.variant.id
        records = experiment.training.train(
            model, self.config, name=name, key=key, teacher=experiment.context.model.module
        )
        history = [*history, *({"round": number, **record} for record in records)]
        whole = compose_plans(left, plan)
        Checkpoints(experiment.context, experiment.splits).save(
            artifact,
            lambda: model,
            kept=whole.kept,
            provenance={**describe_variant(experiment.recipe, self.variant, whole), "recovery": history},
        )
        experiment.training.discard_state(key)

    def _plan_round(self, stages: Experiment, left: PrunePlan, number: int) -> PrunePlan:
        """Choose the neurons that stay in a round, as columns of the model that the round before left."""
        if self.config.rescore:
            scores = stages.scoring.scores(self.variant.criterion)
        else:
            dense = self.experiment.scoring.scores(self.variant.criterion)
            scores = {site: dense[site][columns] for site, columns in left.kept.items()}
        widths = interpolate_widths(self.plan, done=number, rounds=self.config.rounds)
        return keep_best(scores, sites=stages.context.model.adapted.sites, widths=widths)

    def _kept_plan(self, checkpoint: Path) -> PrunePlan:
        """Return the dense model's neurons that a checkpoint kept."""
        kept = read_pruned_config(checkpoint).kept
        assert kept is not None, "stored with it"
        whole = keep_all(self.experiment.context.model.adapted.sites)
        return PrunePlan({name: torch.tensor(columns) for name, columns in kept.items()}, whole.widths, whole.blocks)


def _history(checkpoint: Path) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = read_pruned_config(checkpoint).provenance["recovery"]
    return history
