"""What each criterion keeps: widths block by block, and how far two criteria agree on the neurons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from pathprune.pruning import Budget, PrunePlan
from pathprune.report.entries import Results
from pathprune.report.grid import shaded_grid
from pathprune.report.page import Figure, Prose, Section
from pathprune.report.theme import FAINT, LINES, SERIES, panel, styled
from pathprune.report.wording import budget_words, lowered


def neuron_section(results: Results) -> Section:
    """Widths per block, and overlap of the kept neurons."""
    parts: list[Prose | Figure] = [_widths_figure(results)]
    if len(results.criteria) > 1:
        parts += [_overlap_figure(results), _block_overlap_figure(results)]
    return Section("Which neurons stay", parts)


def plans_of(results: Results, budget: Budget) -> dict[str, PrunePlan]:
    """The plan of each criterion at a budget; under the first compensation where it depends on that."""
    plans: dict[str, PrunePlan] = {}
    for entry in results.at(budget=budget):
        if entry.criterion not in plans:
            plans[entry.criterion] = results.plans[entry.id]
    return plans


def overlap(a: PrunePlan, b: PrunePlan, *, site: str | None = None) -> float:
    """Jaccard index of the kept neurons, of one site or of all: shared ones over those that either keeps."""
    sites = a.kept.keys() if site is None else [site]
    shared = sum(int(np.isin(a.kept[name], b.kept[name], assume_unique=True).sum()) for name in sites)
    return shared / (sum(len(a.kept[name]) + len(b.kept[name]) for name in sites) - shared)


def chance_overlap(plan: PrunePlan) -> float:
    """The Jaccard index that two random choices of the plan's widths have on average, nearly."""
    shared = sum(len(kept) ** 2 / plan.widths[name] for name, kept in plan.kept.items())
    return shared / (2 * sum(map(len, plan.kept.values())) - shared)


def _widths_figure(results: Results) -> Figure:
    return Figure(
        "widths",
        "Kept neurons per block",
        "Bars of the dense widths and, over them, a line of the neurons kept in each block, a panel for each budget; "
        "all widths are in tables/widths.csv.",
        [_widths(results, budget) for budget in results.budgets],
        caption="Bars: the dense model; lines: what is kept.",
    )


@styled()
def _widths(results: Results, budget: Budget) -> Drawing:
    by_widths: dict[tuple[int, ...], list[str]] = {}
    for criterion, plan in plans_of(results, budget).items():
        by_widths.setdefault(tuple(len(kept) for kept in plan.kept.values()), []).append(criterion)
    dense = results.dense.kept_widths
    figure = panel(height=2.6 + 0.19 * len(by_widths))
    axes = figure.subplots()
    axes.bar(range(len(dense)), dense, color=FAINT, width=0.8)
    for index, (widths, criteria) in enumerate(by_widths.items()):
        if len(criteria) == len(results.criteria):
            label = "every criterion"
        else:
            label = ", ".join(criteria[:2]) + (f" and {len(criteria) - 2} more" if len(criteria) > 2 else "")
        axes.step(
            [-0.5, *(block + 0.5 for block in range(len(widths)))],
            [widths[0], *widths],
            color=SERIES[index % len(SERIES)],
            linestyle=LINES[index // len(SERIES) % len(LINES)],
            label=label,
        )
    figure.suptitle(budget_words(budget))
    axes.set_xlabel("block")
    axes.set_ylabel("neurons")
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=1)
    return figure


def _overlap_figure(results: Results) -> Figure:
    chances = {budget: chance_overlap(next(iter(plans_of(results, budget).values()))) for budget in results.budgets}
    said = ", ".join(f"{chance:.2f} with {lowered(budget_words(budget))}" for budget, chance in chances.items())
    return Figure(
        "overlap",
        "How far criteria agree",
        "A grid of criteria by criteria, a panel for each budget; each cell has the share of kept neurons that the "
        "two have in common, from 0 to 1.",
        [_overlap(results, budget, chances[budget]) for budget in results.budgets],
        caption="Neurons that both keep over neurons that either keeps (Jaccard index), over all blocks. By chance: "
        f"{said}; red is less than by chance. Block by block in `tables/overlap.csv`.",
        keep_size=True,
    )


@styled()
def _overlap(results: Results, budget: Budget, chance: float) -> Drawing:
    plans = plans_of(results, budget)
    index_CC = np.array([[overlap(a, b) for b in plans.values()] for a in plans.values()])
    labels = [
        ["" if row == column else f"{value:.2f}" for column, value in enumerate(line)]
        for row, line in enumerate(index_CC.tolist())
    ]
    shades_CC = _above(index_CC, chance)
    np.fill_diagonal(shades_CC, 0)
    names = list(plans)
    return shaded_grid(shades_CC, labels, row_names=names, column_names=names, title=budget_words(budget))


def _block_overlap_figure(results: Results) -> Figure:
    reference = results.criteria[0]
    return Figure(
        "block-overlap",
        f"Agreement with `{reference}`, block by block",
        "A grid of criteria by blocks, a panel for each budget; each cell has the share of kept neurons in common "
        f"with {reference}, from 0 to 1.",
        [_block_overlap(results, budget) for budget in results.budgets],
        caption="The same index within single blocks; shades are relative to chance.",
        keep_size=True,
    )


@styled()
def _block_overlap(results: Results, budget: Budget) -> Drawing:
    plans = plans_of(results, budget)
    reference, *others = plans
    sites = list(plans[reference].kept)
    index_CL = np.array([[overlap(plans[reference], plans[name], site=site) for site in sites] for name in others])
    return shaded_grid(
        _above(index_CL, chance_overlap(plans[reference])),
        [[f"{value:.2f}".removeprefix("0") for value in line] for line in index_CL.tolist()],
        row_names=others,
        column_names=[str(plans[reference].blocks[site]) for site in sites],
        x_label="block",
        title=budget_words(budget),
    )


def _above(index: NDArray[np.float64], chance: float) -> NDArray[np.float64]:
    """−1 for none in common, 0 for what chance gives, 1 for all."""
    return np.where(index >= chance, (index - chance) / (1 - chance), (index - chance) / chance)


def overlap_rows(results: Results) -> list[dict[str, object]]:
    """The Jaccard index of every pair of criteria, over all blocks and in each: rows of a table."""
    rows: list[dict[str, object]] = []
    for budget in results.budgets:
        plans = plans_of(results, budget)
        names: Sequence[str] = list(plans)
        for place, a in enumerate(names):
            for b in names[place + 1 :]:
                common = {"budget_kind": budget.kind, "budget": budget.amount, "criterion_a": a, "criterion_b": b}
                rows.append({**common, "block": None, "jaccard": overlap(plans[a], plans[b])})
                for site, block in plans[a].blocks.items():
                    rows.append({**common, "block": block, "jaccard": overlap(plans[a], plans[b], site=site)})
    return rows
