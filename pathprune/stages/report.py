"""What a run folder shows to people and other programs: `report.html`, `figures/` and `tables/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pathprune.evaluation import Evaluation
from pathprune.files import write_atomically
from pathprune.mining import ClassStats, PathSet
from pathprune.pruning import PrunePlan
from pathprune.report.entries import CriterionCost, Results, SplitInfo, named
from pathprune.report.render import write_page
from pathprune.report.rows import VariantRow
from pathprune.report.run_page import run_page
from pathprune.report.tidy import save_tables, tidy_tables
from pathprune.scoring import Criterion, parse_criterion
from pathprune.stages.experiment import Experiment
from pathprune.stages.images import Use
from pathprune.stages.variants import label


def report(
    experiment: Experiment,
    rows: Sequence[Mapping[str, Any]],
    evaluations: Mapping[str, Sequence[Evaluation]],
    plans: Mapping[str, PrunePlan],
    *,
    environment: Mapping[str, Any],
) -> Results:
    """Write, in the main process, the page, figures and tables of a run; returns what they are made of."""
    variant_rows = [VariantRow.model_validate(row) for row in rows]
    results = Results(
        name=experiment.recipe.name,
        rows=variant_rows,
        evaluations=evaluations,
        plans=plans,
        mined=_mined(experiment),
        class_names=experiment.splits.class_names,
        costs=[_cost(experiment, parse_criterion(spec), variant_rows) for spec in experiment.recipe.score.criteria],
        model=f"`{experiment.recipe.model.name}` ({experiment.loaded.architecture.name})",
        data=f"`{experiment.recipe.data.source}`",
        recipe=experiment.recipe.to_yaml(),
        environment=environment,
        splits=_splits(experiment),
    )
    if experiment.folder.main and experiment.recipe.report:
        write_page(run_page(results), experiment.folder.path / "report.html")
        with write_atomically(experiment.folder.path / "tables") as folder:
            save_tables(tidy_tables(results), folder)
    return results


def _mined(experiment: Experiment) -> dict[str, tuple[ClassStats, PathSet]]:
    """What the recipe's criteria had mined, by tokens."""
    needed = [parse_criterion(spec).needs_mining for spec in experiment.recipe.score.criteria]
    return {
        tokens: (
            experiment.mined(tokens),
            PathSet.load(experiment.folder.path / "mined" / tokens / "paths.parquet"),
        )
        for tokens in dict.fromkeys(needed)
        if tokens is not None
    }


def _cost(experiment: Experiment, criterion: Criterion, rows: Sequence[VariantRow]) -> CriterionCost:
    """What it took to score every neuron by a criterion, as measured when each part was done."""
    tokens, seconds = criterion.needs_mining, experiment.folder.seconds
    steps = ("mining", "statistics", "scoring") if criterion.needs_statistics else ("mining", "scoring")
    told = criterion.model_dump(mode="json", exclude_defaults=True)
    passes = [
        [getattr(row.forward_passes, step) for step in steps]
        for row in rows
        if (row.criterion, row.criterion_options) == (criterion.name, told) and row.forward_passes
    ]
    statistics_key = experiment.statistics_key()
    return CriterionCost(
        criterion=named(criterion.name, told),
        mining_seconds=seconds(f"mined/{tokens}", key=experiment.mining.key(tokens)) if tokens else None,
        statistics_seconds=seconds("statistics", key=statistics_key) if criterion.needs_statistics else None,
        scoring_seconds=seconds(f"scores/{label(criterion)}", key=experiment.score_key(criterion)),
        forward_passes=sum(passes[0]) if passes and None not in passes[0] else None,
    )


def _splits(experiment: Experiment) -> list[SplitInfo]:
    """The images of each use that the run made of them."""
    uses: tuple[Use, ...] = ("mine", "calibrate", "evaluate")
    splits = experiment.recipe.data.splits
    return [SplitInfo(use, getattr(splits, use), len(experiment.splits.images(use))) for use in uses]
