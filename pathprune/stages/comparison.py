"""The rows of a comparison: descriptions and measurements of the dense model and of every variant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pathprune.artifacts import Artifact, ArtifactKind, json_codec
from pathprune.evaluation import Evaluation, count_macs, count_params, retention, size_on_disk, top1_ci
from pathprune.models.pruned_config import WEIGHTS_FILE
from pathprune.report.rows import ROW_VERSION, ForwardPasses, RecoveryRecord, VariantRow
from pathprune.stages.context import Context
from pathprune.stages.mining import Mining
from pathprune.stages.planning import Planned
from pathprune.stages.pruning import Pruning
from pathprune.stages.scoring import Scoring
from pathprune.stages.variants import Variant

ROW: ArtifactKind[VariantRow] = ArtifactKind(
    "rows/{}.json",
    inputs=("evaluation", "dense", "variant", "plan", "seed", "version"),
    codec=json_codec(VariantRow.to_json, VariantRow.model_validate),
)


@dataclass(frozen=True)
class Comparison:
    """Maker of the rows that `metrics.jsonl` holds."""

    context: Context
    mining: Mining
    scoring: Scoring
    pruning: Pruning

    def dense_row(self, evaluation: Evaluation) -> VariantRow:
        """Return the row of the recipe's own model."""
        model = self.context.model
        return VariantRow(
            variant_id="dense",
            criterion=None,
            compensation=None,
            tokens=None,
            budget_kind=self.context.recipe.prune.budget,
            budget=0.0,
            budget_reached=0.0,
            budget_spread=None,
            neurons_removed=0.0,
            **self._measurements(model.module, evaluation, evaluation),
            forward_passes=None,
            kept_widths=[site.width for site in model.adapted.sites],
            recovery=None,
            checkpoint=None,
            checkpoint_bytes=_bytes_of_weights(Path(model.loaded.source)),
        )

    def pruned_row(
        self,
        variant: Variant,
        planned: Planned,
        build: Callable[[], nn.Module],
        evaluation: Artifact[Evaluation],
        outcomes: Evaluation,
        dense: Evaluation,
        recovery: RecoveryRecord | None = None,
    ) -> VariantRow:
        """Return the stored row of a variant, or measure the model that `build` returns.

        `recovery` is given for a variant that was trained after pruning.
        """
        variant_id = f"{variant.id}--recovered" if recovery else variant.id
        artifact = ROW.of(
            variant_id,
            evaluation=evaluation.key,
            dense=dense.summary(),
            variant=[variant.criterion.spec(), variant.compensation.spec(), str(variant.budget)],
            plan=[planned.reached, planned.spread, planned.plan.to_dict()],
            seed=self.context.recipe.seed,
            version=ROW_VERSION,
        )

        def measure() -> VariantRow:
            return VariantRow(
                variant_id=variant_id,
                criterion=variant.criterion.name,
                criterion_options=variant.criterion.model_dump(mode="json", exclude_defaults=True),
                compensation=variant.compensation.name,
                tokens=variant.criterion.needs_mining,
                budget_kind=variant.budget.kind,
                budget=variant.budget.amount,
                budget_reached=planned.reached,
                budget_spread=planned.spread,
                neurons_removed=planned.plan.neurons_removed,
                **self._measurements(build(), outcomes, dense),
                # the cost of training is in its history
                forward_passes=None if recovery else self._forward_passes(variant, planned),
                kept_widths=[len(kept) for kept in planned.plan.kept.values()],
                recovery=recovery,
                checkpoint=None,
                checkpoint_bytes=None,
            )

        return self.context.folder.obtain(artifact, measure)

    def with_checkpoint(self, row: VariantRow, checkpoint: Path) -> VariantRow:
        """Return the row with the place and size of its checkpoint."""
        place = str(checkpoint.relative_to(self.context.folder.path))
        size = size_on_disk(checkpoint / WEIGHTS_FILE)
        return row.model_copy(update={"checkpoint": place, "checkpoint_bytes": size})

    def _forward_passes(self, variant: Variant, planned: Planned) -> ForwardPasses:
        """Return each step's cost in dense forward passes of one image; shared steps count for every variant."""
        criterion, folder = variant.criterion, self.context.folder
        forward = count_macs(self.context.model.module, self.context.model.image_size)

        def passes(artifact: Artifact[Any] | None) -> float | None:
            if artifact is None:  # a step that the variant does not take
                return 0.0
            work = folder.work(artifact)
            return None if work is None or work.macs is None else work.macs / forward

        needs_statistics = criterion.needs_statistics or variant.compensation.needs_statistics
        return ForwardPasses(
            mining=passes(self.mining.artifact(criterion.needs_mining) if criterion.needs_mining else None),
            statistics=passes(self.scoring.statistics_artifact() if needs_statistics else None),
            scoring=passes(self.scoring.artifact(criterion)),
            damage=passes(planned.damage),
            fitting=passes(self.pruning.artifact(variant, planned.plan)),
        )

    def _measurements(self, module: nn.Module, outcomes: Evaluation, dense: Evaluation) -> dict[str, Any]:
        summary, kept = outcomes.summary(), retention(outcomes, dense)
        return {
            "seed": self.context.recipe.seed,
            "classes": list(self.context.recipe.classes) or None,
            "num_images": summary["num_images"],
            "top1": summary["top1"],
            "top1_ci": tuple(top1_ci(outcomes)),
            "retention": kept.value,
            "retention_ci": tuple(kept.ci),
            "top5": summary["top5"],
            "nll": summary["nll"],
            "per_class": summary["per_class"],
            "agreement": summary.get("agreement"),
            "num_params": count_params(module),
            "macs": count_macs(module, self.context.model.image_size),
        }


def _bytes_of_weights(source: Path) -> int | None:
    """Return the size of the dense weights in bytes, or None where they are not on this machine."""
    file = source / WEIGHTS_FILE if (source / WEIGHTS_FILE).is_file() else source
    return size_on_disk(file) if file.exists() else None
