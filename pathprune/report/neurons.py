"""Page section on the kept neurons: widths of the blocks, and agreement of criteria on the neurons."""

# C criteria, L blocks

from __future__ import annotations

from itertools import combinations

import numpy as np
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from pathprune.pruning import Budget, PrunePlan
from pathprune.report.entries import Results
from pathprune.report.grid import draw_grid
from pathprune.report.page import Figure, Prose, Section
from pathprune.report.theme import FAINT, figure_style, new_panel, series_style
from pathprune.report.wording import describe_budget, lower_first


def build_neuron_section(results: Results) -> Section:
    """Build the section on the widths of the blocks and, for several criteria, their agreement."""
    parts: list[Prose | Figure] = [_build_widths_figure(results)]
    if len(results.criteria) > 1:
        parts += [_build_overlap_figure(results), _build_block_overlap_figure(results)]
    return Section("Kept neurons", parts)


def select_plans(results: Results, budget: Budget) -> dict[str, PrunePlan]:
    """Return the plan of each criterion at a budget, with the first compensation if the plan depends on it."""
    plans: dict[str, PrunePlan] = {}
    for entry in results.select(budget=budget):
        if entry.criterion not in plans:
            plans[entry.criterion] = results.plans[entry.id]
    return plans


def compute_overlap(a: PrunePlan, b: PrunePlan, *, site: str | None = None) -> float:
    """Return the Jaccard index of the kept neurons, at one site or at all: intersection over union."""
    sites = a.kept.keys() if site is None else [site]
    shared = sum(int(np.isin(a.kept[name], b.kept[name], assume_unique=True).sum()) for name in sites)
    return shared / (sum(len(a.kept[name]) + len(b.kept[name]) for name in sites) - shared)


def estimate_chance_overlap(plan: PrunePlan) -> float:
    """Estimate the mean Jaccard index of two random choices of neurons with the plan's widths."""
    shared = sum(len(kept) ** 2 / plan.widths[name] for name, kept in plan.kept.items())
    return shared / (2 * sum(map(len, plan.kept.values())) - shared)


def list_overlaps(results: Results) -> list[dict[str, object]]:
    """List the Jaccard index of every pair of criteria, over all blocks (`block` None) and in each block."""
    rows: list[dict[str, object]] = []
    for budget in results.budgets:
        plans = select_plans(results, budget)
        for a, b in combinations(plans, 2):
            pair = {"budget_kind": budget.kind, "budget": budget.amount, "criterion_a": a, "criterion_b": b}
            rows.append({**pair, "block": None, "jaccard": compute_overlap(plans[a], plans[b])})
            for site, block in plans[a].blocks.items():
                rows.append({**pair, "block": block, "jaccard": compute_overlap(plans[a], plans[b], site=site)})
    return rows


def _build_widths_figure(results: Results) -> Figure:
    return Figure(
        "widths",
        "Kept neurons per block",
        "Bars of the dense width of each block, and lines of the kept neurons: one panel per budget. The file "
        "tables/widths.csv has all widths.",
        [_draw_widths(results, budget) for budget in results.budgets],
        caption="Bars: widths of the dense model. Lines: kept neurons.",
    )


@figure_style()
def _draw_widths(results: Results, budget: Budget) -> Drawing:
    criteria_by_widths: dict[tuple[int, ...], list[str]] = {}
    for criterion, plan in select_plans(results, budget).items():
        widths = tuple(len(kept) for kept in plan.kept.values())
        criteria_by_widths.setdefault(widths, []).append(criterion)
    dense = results.dense.kept_widths
    figure = new_panel(height=2.6 + 0.19 * len(criteria_by_widths))
    axes = figure.subplots()
    axes.bar(range(len(dense)), dense, color=FAINT, width=0.8)
    for index, (widths, criteria) in enumerate(criteria_by_widths.items()):
        if len(criteria) == len(results.criteria):
            label = "every criterion"
        else:
            label = ", ".join(criteria[:2]) + (f" and {len(criteria) - 2} more" if len(criteria) > 2 else "")
        style = series_style(index)
        axes.step(
            [-0.5, *(block + 0.5 for block in range(len(widths)))],
            [widths[0], *widths],
            color=style.color,
            linestyle=style.linestyle,
            label=label,
        )
    figure.suptitle(describe_budget(budget))
    axes.set_xlabel("block")
    axes.set_ylabel("neurons")
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=1)
    return figure


def _build_overlap_figure(results: Results) -> Figure:
    chances = {
        budget: estimate_chance_overlap(next(iter(select_plans(results, budget).values())))
        for budget in results.budgets
    }
    listing = ", ".join(f"{chance:.2f} ({lower_first(describe_budget(budget))})" for budget, chance in chances.items())
    return Figure(
        "overlap",
        "Agreement between criteria",
        "A grid of criteria by criteria, one panel per budget. Each cell has the Jaccard index of the neurons that the "
        "two criteria keep.",
        [_draw_overlap(results, budget, chances[budget]) for budget in results.budgets],
        caption="Jaccard index over all blocks: neurons that both criteria keep over neurons that at least one keeps. "
        f"Random choices reach {listing}. Blue: more than random choices. Red: less. The index of each block is in "
        "`tables/overlap.csv`.",
        keep_size=True,
    )


def _draw_overlap(results: Results, budget: Budget, chance: float) -> Drawing:
    plans = select_plans(results, budget)
    index_CC = np.array([[compute_overlap(a, b) for b in plans.values()] for a in plans.values()])
    labels = [
        ["" if row == column else f"{value:.2f}" for column, value in enumerate(line)]
        for row, line in enumerate(index_CC.tolist())
    ]
    shades_CC = _scale_to_chance(index_CC, chance)
    np.fill_diagonal(shades_CC, 0)
    names = list(plans)
    return draw_grid(shades_CC, labels, row_names=names, column_names=names, title=describe_budget(budget))


def _build_block_overlap_figure(results: Results) -> Figure:
    reference = results.criteria[0]
    return Figure(
        "block-overlap",
        f"Agreement with `{reference}` by block",
        "A grid of criteria by blocks, one panel per budget. Each cell has the Jaccard index of the neurons that the "
        f"criterion and {reference} keep in the block.",
        [_draw_block_overlap(results, budget) for budget in results.budgets],
        caption="Jaccard index within each block, with the same shades.",
        keep_size=True,
    )


def _draw_block_overlap(results: Results, budget: Budget) -> Drawing:
    plans = select_plans(results, budget)
    reference, *others = plans
    sites = list(plans[reference].kept)
    index_CL = np.array(
        [[compute_overlap(plans[reference], plans[name], site=site) for site in sites] for name in others]
    )
    return draw_grid(
        _scale_to_chance(index_CL, estimate_chance_overlap(plans[reference])),
        [[f"{value:.2f}".removeprefix("0") for value in line] for line in index_CL.tolist()],
        row_names=others,
        column_names=[str(plans[reference].blocks[site]) for site in sites],
        x_label="block",
        title=describe_budget(budget),
    )


def _scale_to_chance(index: NDArray[np.float64], chance: float) -> NDArray[np.float64]:
    """Scale Jaccard indices to shades: 0 -> −1, the chance index -> 0, 1 -> 1."""
    return np.where(index >= chance, (index - chance) / (1 - chance), (index - chance) / chance)
