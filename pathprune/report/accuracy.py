"""Page sections on accuracy: curves, intervals and tables of retention, and the significance of differences."""

from __future__ import annotations

import math

from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator

from pathprune.pruning import Budget
from pathprune.report.entries import Entry, Results, find_best
from pathprune.report.page import Cell, Column, Details, Figure, Prose, Section, Table
from pathprune.report.theme import figure_style, new_panel, series_style
from pathprune.report.verdict import describe_saving
from pathprune.report.wording import (
    describe_budget,
    format_interval,
    format_millions,
    format_p_value,
    format_percent,
    format_points,
    format_points_interval,
)


def build_accuracy_section(results: Results) -> Section:
    """Build the section on the retention of every criterion, by budget and compensation."""
    images = f"{results.dense.num_images:,} evaluation images"
    seeds = f", averaged over {results.num_seeds} seeds" if results.num_seeds > 1 else ""
    return Section(
        "Accuracy after pruning",
        [
            Prose(
                "Retention is the pruned model's top-1 divided by the dense model's top-1, on the same "
                f"{images}{seeds}. Bands, error bars and brackets are 95 % intervals (paired bootstrap over images)."
            ),
            _build_curves_figure(results),
            _build_intervals_figure(results),
            *(_build_retention_table(results, budget) for budget in results.budgets),
            Details("All variants in numbers", [_build_variant_table(results)]),
        ],
    )


def build_significance_section(results: Results) -> Section:
    """Build the section that compares every criterion with the best one, corrected for the number of pairs."""
    num_criteria = len(results.criteria)
    return Section(
        "Significant differences",
        [
            Prose(
                "Each cell is the top-1 of a criterion minus the top-1 of the best criterion with the same budget and "
                "compensation, in points, with the paired 95 % interval. A difference is significant if its interval "
                "excludes 0 and the p-value of McNemar's exact test is below 5 % after Holm's correction for all "
                f"{num_criteria * (num_criteria - 1) // 2} pairs of criteria. Any other difference is a tie. The best "
                "criterion is chosen on the same evaluation images, so its lead is slightly overestimated. All pairs "
                "are in `tables/significance.csv`."
            ),
            *(_build_difference_table(results, budget) for budget in results.budgets if budget.kind != "max-drop"),
        ],
    )


def _build_curves_figure(results: Results) -> Figure:
    return Figure(
        "retention",
        "Retained top-1 by saved multiply-accumulates (MACs)",
        "Line plots of retention over the share of MACs saved: one panel per compensation, one line per criterion. "
        "The tables below have the numbers.",
        [_draw_curves(results, compensation) for compensation in results.compensations],
        caption="One panel per compensation, each with its own vertical scale.",
    )


@figure_style()
def _draw_curves(results: Results, compensation: str) -> Drawing:
    num_legend_rows = math.ceil(len(results.criteria) / 2)
    figure = new_panel(height=2.75 + 0.19 * num_legend_rows)
    axes = figure.subplots()
    for index, criterion in enumerate(results.criteria):
        entries = [e for e in results.entries if (e.criterion, e.compensation) == (criterion, compensation)]
        entries.sort(key=lambda entry: -entry.macs)
        saved = [0.0, *(100 * (1 - entry.macs / results.dense.macs) for entry in entries)]
        retained = [100.0, *(100 * entry.retention.value for entry in entries)]
        low = [100.0, *(100 * entry.retention.ci[0] for entry in entries)]
        high = [100.0, *(100 * entry.retention.ci[1] for entry in entries)]
        style = series_style(index)
        axes.fill_between(saved, low, high, color=style.color, alpha=0.13, linewidth=0)
        axes.plot(saved, retained, color=style.color, marker=style.marker, linestyle=style.linestyle, label=criterion)
    figure.suptitle(f"compensation: {compensation}")
    axes.set_xlabel("MACs saved, %")
    axes.set_ylabel("top-1 retained, %")
    axes.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncols=2, handlelength=2.2, columnspacing=1.2)
    return figure


def _build_intervals_figure(results: Results) -> Figure:
    return Figure(
        "criteria",
        "Criteria side by side",
        "Retention of every criterion with its interval: one panel per budget, one colour per compensation. The tables "
        "below have the numbers.",
        [_draw_intervals(results, budget) for budget in results.budgets],
        caption="One panel per budget, with the best criterion on top.",
    )


@figure_style()
def _draw_intervals(results: Results, budget: Budget) -> Drawing:
    entries = results.select(budget=budget)
    order = _sort_criteria(results, entries)[::-1]  # from the bottom up
    figure = new_panel(height=1.35 + 0.19 * len(results.compensations) + 0.24 * len(order))
    axes = figure.subplots()
    for index, compensation in enumerate(results.compensations):
        chosen = [entry for entry in entries if entry.compensation == compensation]
        style = series_style(index)
        shift = 0.16 * (index - (len(results.compensations) - 1) / 2)
        axes.errorbar(
            [100 * entry.retention.value for entry in chosen],
            [order.index(entry.criterion) - shift for entry in chosen],
            xerr=[
                [100 * max(entry.retention.value - entry.retention.ci[0], 0) for entry in chosen],
                [100 * max(entry.retention.ci[1] - entry.retention.value, 0) for entry in chosen],
            ],
            color=style.color,
            marker=style.marker,
            linestyle="none",
            elinewidth=1.3,
            label=compensation,
        )
    axes.set_yticks(range(len(order)), order)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    figure.suptitle(describe_budget(budget))
    axes.set_xlabel("top-1 retained, %")
    figure.legend(loc="outside lower center", ncols=min(3, len(results.compensations)), handlelength=1)
    return figure


def _build_retention_table(results: Results, budget: Budget) -> Table:
    entries = results.select(budget=budget)
    rows: list[list[Cell | str]] = []
    for name in _sort_criteria(results, entries):
        by_compensation = {entry.compensation: entry for entry in entries if entry.criterion == name}
        cells = (
            _build_retention_cell(results, by_compensation[c]) if c in by_compensation else ""
            for c in results.compensations
        )
        rows.append([name, *cells])
    return Table(
        f"{describe_saving(results, find_best(entries))}: top-1 retained, in %. Green: the best criterion of the "
        "column and the criteria that tie with it.",
        [Column("criterion", is_number=False), *(Column(f"`{name}`") for name in results.compensations)],
        rows,
    )


def _sort_criteria(results: Results, entries: list[Entry]) -> list[str]:
    """Sort the criteria by their best retention among `entries`, best first."""
    best = {
        name: max(entry.retention.value for entry in entries if entry.criterion == name) for name in results.criteria
    }
    return sorted(results.criteria, key=lambda name: -best[name])


def _build_retention_cell(results: Results, entry: Entry) -> Cell:
    return Cell(
        f"{100 * entry.retention.value:.1f}",
        format_interval(entry.retention.ci),
        tone="good" if results.leads(entry) else "",
    )


def _build_difference_table(results: Results, budget: Budget) -> Table:
    columns = [Column("criterion", is_number=False)]
    for compensation in results.compensations:
        columns += [Column(f"`{compensation}`"), Column("p")]
    settings = [results.select(budget=budget, compensation=name) for name in results.compensations]
    rows: list[list[Cell | str]] = []
    for name in results.criteria:
        row: list[Cell | str] = [name]
        for entries in settings:
            row += _build_difference_cells(results, name, entries)
        rows.append(row)
    return Table(describe_budget(budget), columns, rows)


def _build_difference_cells(results: Results, criterion: str, entries: list[Entry]) -> list[Cell | str]:
    """Build the cells of one criterion in one setting: difference to the best criterion, and p-value."""
    entry = next((entry for entry in entries if entry.criterion == criterion), None)
    if entry is None:
        return ["", ""]
    leader = find_best(entries)
    if entry.id == leader.id:
        return [Cell("best", tone="good"), ""]
    comparison = results.compare(entry, leader).result
    is_tie = comparison.verdict == "tie"
    return [
        Cell(
            "tie" if is_tie else format_points(comparison.difference),
            format_points_interval(comparison.ci),
            tone="muted" if is_tie else "",
        ),
        Cell(format_p_value(comparison.p_value), tone="muted"),
    ]


def _build_variant_table(results: Results) -> Table:
    is_timed = any(entry.row.timing for entry in results.entries)
    headings = ["top-1 %", "top-5 %", "nll", "agreement with dense %", "neurons removed", "parameters", "MACs"]
    columns = [
        *(Column(heading, is_number=False) for heading in ("criterion", "compensation")),
        *map(Column, [*headings, *(("latency", "speed-up") if is_timed else ())]),
    ]
    rows: list[list[Cell | str]] = []
    starts = []
    for budget in results.budgets:
        starts.append(len(rows))
        rows += [_build_variant_row(results, entry) for entry in results.select(budget=budget)]
    return Table("All variants", columns, rows, frozenset(starts))


def _build_variant_row(results: Results, entry: Entry) -> list[Cell | str]:
    row, timing = entry.row, entry.row.timing
    return [
        entry.criterion,
        entry.compensation,
        Cell(f"{100 * entry.top1:.1f}", format_interval(row.top1_ci) if results.num_seeds == 1 else ""),
        f"{100 * entry.top5:.1f}",
        f"{entry.nll:.3f}",
        f"{100 * entry.agreement:.1f}",
        format_percent(row.neurons_removed, 1),
        format_millions(row.num_params),
        format_millions(entry.macs),
        *((f"{timing.latency_ms:.1f} ms", f"{timing.speedup:.2f}×") if timing else ()),
    ]
