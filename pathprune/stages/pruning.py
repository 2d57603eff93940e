"""The pruning stage: pruned and compensated copies of the model, and their checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from pathprune.artifacts import Artifact, ArtifactKind, json_codec
from pathprune.models.adapt import adapt
from pathprune.models.checkpoint import load_pruned
from pathprune.models.pruned_config import VERSION
from pathprune.models.seam import AdaptedModel
from pathprune.pruning import PrunePlan, prune
from pathprune.stages.checkpoints import CHECKPOINT_CODEC, Checkpoints
from pathprune.stages.context import Context
from pathprune.stages.images import Splits
from pathprune.stages.provenance import describe_variant
from pathprune.stages.scoring import Scoring
from pathprune.stages.variants import Variant

PLAN: ArtifactKind[PrunePlan] = ArtifactKind(
    "plans/{}.json", inputs=("plan",), codec=json_codec(PrunePlan.to_dict, PrunePlan.from_dict)
)
PRUNED: ArtifactKind[nn.Module] = ArtifactKind(
    "pruned/{}",
    inputs=("model", "plan", "compensation", "calibration", "class_names", "seed", "format"),
    codec=CHECKPOINT_CODEC,
)


class Pruning:
    """Pruned variants of the model, fitted on first use or loaded from their checkpoints."""

    def __init__(self, context: Context, splits: Splits, scoring: Scoring) -> None:
        self._context, self._splits, self._scoring = context, splits, scoring
        self._checkpoints = Checkpoints(context, splits)

    def artifact(self, variant: Variant, plan: PrunePlan) -> Artifact[nn.Module]:
        """Describe a variant's model; stored as a checkpoint only where the recipe says so."""
        compensation = variant.compensation
        uses_images = compensation.needs_statistics or compensation.needs_batches
        return PRUNED.of(
            variant.id,
            model=self._context.model_key,
            plan=plan.to_dict(),
            compensation=compensation.identity(),
            calibration=self._splits.of("calibrate").key if uses_images else None,
            class_names=self._splits.class_names,
            seed=self._context.recipe.seed if compensation.needs_batches else None,
            format=VERSION,
        )

    def fit(self, variant: Variant, plan: PrunePlan) -> nn.Module:
        """Return a pruned and compensated copy of the model, and record what the fit costs."""
        if variant.compensation.needs_statistics:
            self._scoring.statistics()  # a cost of its own
        if self._context.folder.is_current(self.artifact(variant, plan)):
            return self.build(variant, plan).model
        with self._context.counted(self.artifact(variant, plan)):
            return self.build(variant, plan).model

    def build(self, variant: Variant, plan: PrunePlan) -> AdaptedModel:
        """Return a pruned and compensated copy of the model; the stored checkpoint where it is current."""
        context, artifact, compensation = self._context, self.artifact(variant, plan), variant.compensation
        if context.folder.is_current(artifact):
            stored = load_pruned(context.folder.path / artifact.name)
            return adapt(stored.to(context.accelerator.device), check=False)
        return prune(
            context.model.adapted,
            plan=plan,
            compensation=compensation,
            statistics=self._scoring.statistics() if compensation.needs_statistics else None,
            batches=self._splits.calibration(f"fitting {variant.id}") if compensation.needs_batches else None,
            seed=context.recipe.seed,
        )

    def save(self, variant: Variant, plan: PrunePlan, build: Callable[[], nn.Module] | None = None) -> Path:
        """Store a variant's checkpoint and return its folder; `build` returns its model, by default a new fit."""
        return self._checkpoints.save(
            self.artifact(variant, plan),
            build or (lambda: self.fit(variant, plan)),
            kept=plan.kept,
            provenance=describe_variant(self._context.recipe, variant, plan),
        )

    def save_plan(self, variant: Variant, plan: PrunePlan) -> None:
        """Store a variant's plan."""
        self._context.folder.obtain(PLAN.of(variant.id, plan=plan.to_dict()), lambda: plan)
