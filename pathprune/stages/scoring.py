"""The scoring stage: activation statistics of the calibration images, and every criterion's scores."""

from __future__ import annotations

from safetensors.torch import load_file, save_file

from pathprune.artifacts import Artifact, ArtifactKind, Codec
from pathprune.pruning.compensation import parse_compensation
from pathprune.scoring import ActivationStatistics, Criterion, Scores, ScoringContext, collect_statistics, score
from pathprune.scoring.criteria import parse_criterion
from pathprune.stages.context import Context
from pathprune.stages.images import Splits
from pathprune.stages.mining import Mining
from pathprune.stages.variants import label

STATISTICS: ArtifactKind[ActivationStatistics] = ArtifactKind(
    "statistics.safetensors",
    inputs=("model", "images", "covariance"),
    codec=Codec(ActivationStatistics.save, ActivationStatistics.load),
)
SCORES: ArtifactKind[Scores] = ArtifactKind(
    "scores/{}.safetensors",
    inputs=("model", "criterion", "mining", "calibration", "classes", "class_names", "seed"),
    codec=Codec(save_file, load_file),
)


class Scoring:
    """Scores of the dense model's neurons."""

    def __init__(self, context: Context, splits: Splits, mining: Mining) -> None:
        self._context, self._splits, self._mining = context, splits, mining
        self._statistics: ActivationStatistics | None = None

    def statistics_artifact(self) -> Artifact[ActivationStatistics]:
        """Describe the activation statistics."""
        return STATISTICS.of(
            model=self._context.model_key,
            images=self._splits.of("calibrate").key,
            covariance=self._needs_covariance,
        )

    def statistics(self) -> ActivationStatistics:
        """Return the dense model's activation statistics, with covariances if a step of the recipe needs them."""
        if self._statistics is None:
            artifact = self.statistics_artifact()

            def collect() -> ActivationStatistics:
                batches = self._splits.calibration("calibrating")
                with self._context.counted(artifact):
                    return collect_statistics(self._context.model.adapted, batches, covariance=self._needs_covariance)

            self._statistics = self._context.obtain_by_main(artifact, collect)
        return self._statistics

    @property
    def _needs_covariance(self) -> bool:
        recipe = self._context.recipe
        compensations = [parse_compensation(spec) for spec in recipe.compensation]
        return (
            any(parse_criterion(spec).needs_covariance for spec in recipe.score.criteria)
            or any(compensation.needs_covariance for compensation in compensations)
            # damage is measured with least squares in place of a compensation that fits block after block
            or (recipe.prune.normalize == "damage" and any(each.needs_batches for each in compensations))
        )

    def artifact(self, criterion: Criterion) -> Artifact[Scores]:
        """Describe a criterion's scores; raises `ValueError` where the recipe lacks labels that the criterion needs."""
        if criterion.needs_labels and not self._context.model.is_classifier:
            raise ValueError(f"criterion '{criterion.name}' needs a classifier's loss, but the model has no classifier")
        calibration = self._splits.of("calibrate")
        if criterion.needs_labels and not calibration.images.is_labelled:
            raise ValueError(f"criterion '{criterion.name}' needs labels, but the calibration images have none")
        tokens = criterion.needs_mining
        return SCORES.of(
            label(criterion),
            model=self._context.model_key,
            criterion=criterion.identity(),
            mining=self._mining.artifact(tokens).key if tokens else None,
            calibration=calibration.key,
            classes=self._classes,
            class_names=self._splits.class_names,
            seed=self._context.recipe.seed,
        )

    @property
    def _classes(self) -> tuple[int, ...] | None:
        """The recipe's classes as indices of the model's; None for all."""
        return None if self._context.recipe.model.slice_head else self._splits.classes or None

    def scores(self, criterion: Criterion) -> Scores:
        """Score every neuron by one criterion."""
        tokens, artifact = criterion.needs_mining, self.artifact(criterion)
        # stages of their own, ahead of the main process's turn in this one
        mined = {tokens: self._mining.stats(tokens)} if tokens else {}
        statistics = self.statistics() if criterion.needs_statistics else None

        def compute() -> Scores:
            context = ScoringContext(
                adapted=self._context.model.adapted,
                batches=self._splits.calibration(f"scoring by {criterion.name}"),
                mined=mined,
                statistics=statistics,
                seed=self._context.recipe.seed,
                classes=self._classes,
            )
            with self._context.counted(artifact):
                return score(context, criterion=criterion)

        return self._context.obtain_by_main(artifact, compute)
