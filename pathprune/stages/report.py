"""The report stage: `report.html`, `figures/` and `tables/` of a run or a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pathprune.evaluation import Evaluation
from pathprune.files import write_atomically
from pathprune.mining import ClassStats, PathSet
from pathprune.pruning import PrunePlan
from pathprune.report.entries import CriterionCost, Results, SplitInfo, format_criterion
from pathprune.report.render import write_page
from pathprune.report.rows import VariantRow
from pathprune.report.run_page import build_run_page
from pathprune.report.tidy import build_tidy_tables, save_tables
from pathprune.runs import Work
from pathprune.scoring import Criterion, parse_criterion
from pathprune.stages.experiment import Experiment


def write_report(
    experiment: Experiment,
    rows: Sequence[VariantRow],
    evaluations: Mapping[str, Sequence[Evaluation]],
    plans: Mapping[str, PrunePlan],
    *,
    environment: Mapping[str, Any],
) -> Results:
    """Write, from the main process, the page, figures and tables of a run; return the results that they show."""
    recipe = experiment.recipe
    results = Results(
        name=recipe.name,
        rows=rows,
        evaluations=evaluations,
        plans=plans,
        mined=_mined(experiment),
        class_names=experiment.splits.class_names,
        costs=[_cost(experiment, parse_criterion(spec), rows) for spec in recipe.score.criteria],
        model=f"`{recipe.model.name}` ({experiment.context.model.loaded.architecture.name})",
        data=f"`{recipe.data.source}`",
        recipe=recipe.to_yaml(),
        environment=environment,
        splits=_splits(experiment),
    )
    if experiment.folder.main and recipe.report:
        path = experiment.folder.path
        write_page(build_run_page(results), path / "report.html")
        with write_atomically(path / "tables") as folder:
            save_tables(build_tidy_tables(results), folder)
    return results


def _mined(experiment: Experiment) -> dict[str, tuple[ClassStats, PathSet]]:
    """Return class statistics and paths for the token settings of the recipe's criteria."""
    needed = [parse_criterion(spec).needs_mining for spec in experiment.recipe.score.criteria]
    return {
        tokens: (experiment.mining.stats(tokens), experiment.mining.paths(tokens))
        for tokens in dict.fromkeys(needed)
        if tokens is not None
    }


def _cost(experiment: Experiment, criterion: Criterion, rows: Sequence[VariantRow]) -> CriterionCost:
    """Return the cost of scoring every neuron by a criterion, as recorded when each step ran."""
    folder, tokens = experiment.folder, criterion.needs_mining
    options = criterion.model_dump(mode="json", exclude_defaults=True)
    mining = folder.work(experiment.mining.artifact(tokens)) if tokens else None
    statistics = folder.work(experiment.scoring.statistics_artifact()) if criterion.needs_statistics else None
    return CriterionCost(
        criterion=format_criterion(criterion.name, options),
        mining_seconds=_seconds(mining),
        statistics_seconds=_seconds(statistics),
        scoring_seconds=_seconds(folder.work(experiment.scoring.artifact(criterion))),
        forward_passes=_forward_passes(criterion, options, rows),
    )


def _seconds(work: Work | None) -> float | None:
    return None if work is None else work.seconds


def _forward_passes(criterion: Criterion, options: dict[str, Any], rows: Sequence[VariantRow]) -> float | None:
    """Return the forward passes of a criterion's steps, from the first row that has them."""
    for row in rows:
        if row.forward_passes and (row.criterion, row.criterion_options) == (criterion.name, options):
            passes = row.forward_passes
            statistics = passes.statistics if criterion.needs_statistics else 0.0
            steps = [passes.mining, statistics, passes.scoring]
            return None if None in steps else sum(step for step in steps if step is not None)
    return None


def _splits(experiment: Experiment) -> list[SplitInfo]:
    """Return the number of images of each use."""
    splits = experiment.recipe.data.splits
    return [
        SplitInfo("mine", splits.mine, len(experiment.mining.sample.image_set)),
        SplitInfo("calibrate", splits.calibrate, len(experiment.splits.of("calibrate"))),
        SplitInfo("evaluate", splits.evaluate, len(experiment.splits.of("evaluate"))),
    ]
