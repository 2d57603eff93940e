"""Page section on the accuracy of single classes, dense and pruned."""

# N images

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure as Drawing

from pathprune.evaluation import Evaluation, Interval
from pathprune.evaluation.bootstrap import mean_interval
from pathprune.report.entries import Results
from pathprune.report.page import Cell, Column, Details, Figure, Prose, Section, Table, Tone
from pathprune.report.theme import ACCENT, BAD, MUTED, SERIES, figure_style, new_panel
from pathprune.report.verdict import choose_featured
from pathprune.report.wording import describe_budget, format_points, format_points_interval, lower_first

_MAX_SHOWN = 15  # classes in the figure; the table has all


@dataclass(frozen=True)
class ClassAccuracy:
    """Top-1 of one class, dense and pruned; `pruned` is the mean over seeds, `change_ci` a 95 % interval."""

    name: str
    num_images: int
    dense: float
    pruned: float
    change_ci: Interval

    @property
    def change(self) -> float:
        return self.pruned - self.dense


def build_class_section(results: Results) -> Section:
    """Build the section on top-1 by class for the featured variant, largest loss first."""
    entry = choose_featured(results)
    present = np.unique(results.dense_evaluation.labels).tolist()
    classes = [
        measure_class(index, results.class_names[index], results.dense_evaluation, entry.evaluations)
        for index in present
    ]
    classes.sort(key=lambda each: each.change)
    shown, worst, best = classes[:_MAX_SHOWN], classes[0], classes[-1]
    budget = lower_first(describe_budget(entry.budget))
    variant = f"criterion `{entry.criterion}`, compensation `{entry.compensation}`, {budget}"
    return Section(
        "Accuracy by class",
        [
            Prose(
                f"The model of this section: {variant}. Its top-1 changes by {format_points(worst.change)} points "
                f"(`{worst.name}`) to {format_points(best.change)} points (`{best.name}`)."
            ),
            Figure(
                "classes",
                "Top-1 by class, largest loss first",
                "A line for each class from its dense top-1 to its pruned top-1. The table below has the numbers.",
                [_draw_classes(shown)],
                caption=f"The {len(shown)} of {len(classes)} classes with the largest loss."
                if len(shown) < len(classes)
                else "",
            ),
            Details("All classes in numbers", [_build_class_table(classes, variant)]),
        ],
    )


def measure_class(index: int, name: str, dense: Evaluation, pruned: Sequence[Evaluation]) -> ClassAccuracy:
    """Measure the top-1 of class `index` in the dense evaluation and in the pruned evaluations, one per seed."""
    is_own_N = dense.labels == index
    dense_correct_N = dense.correct[is_own_N]
    pruned_correct_N = np.mean([evaluation.correct[is_own_N] for evaluation in pruned], axis=0)
    return ClassAccuracy(
        name,
        num_images=int(is_own_N.sum()),
        dense=float(dense_correct_N.mean()),
        pruned=float(pruned_correct_N.mean()),
        change_ci=mean_interval(pruned_correct_N - dense_correct_N),
    )


def _build_class_table(classes: Sequence[ClassAccuracy], variant: str) -> Table:
    return Table(
        f"Top-1 by class, in %: {variant}. Green and red: the 95 % interval of the change excludes 0.",
        [Column("class", is_number=False), *map(Column, ("images", "dense", "pruned", "change in points"))],
        [_build_class_row(each) for each in classes],
    )


def _build_class_row(accuracy: ClassAccuracy) -> list[Cell | str]:
    low, high = accuracy.change_ci
    tone: Tone = "bad" if high < 0 else "good" if low > 0 else ""
    return [
        accuracy.name,
        f"{accuracy.num_images:,}",
        f"{100 * accuracy.dense:.1f}",
        f"{100 * accuracy.pruned:.1f}",
        Cell(format_points(accuracy.change), format_points_interval(accuracy.change_ci), tone=tone),
    ]


@figure_style()
def _draw_classes(classes: Sequence[ClassAccuracy]) -> Drawing:
    figure = new_panel(3.5, 1.2 + 0.24 * len(classes))
    axes = figure.subplots()
    from_bottom = list(reversed(classes))
    places = range(len(from_bottom))
    for place, each in zip(places, from_bottom, strict=True):
        color = BAD if each.change < 0 else SERIES[2]
        axes.plot([100 * each.dense, 100 * each.pruned], [place, place], color=color, linewidth=2)
    axes.plot([100 * each.dense for each in from_bottom], places, "o", color=MUTED, label="dense", markersize=6)
    axes.plot([100 * each.pruned for each in from_bottom], places, "D", color=ACCENT, label="pruned")
    axes.set_yticks(places, [each.name for each in from_bottom])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("top-1, %")
    axes.set_ylim(-0.6, len(classes) - 0.4)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
