"""How much accuracy each variant keeps: curves, intervals, tables, and which differences are differences."""

from __future__ import annotations

import math

from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator

from pathprune.pruning import Budget
from pathprune.report.entries import Entry, Results, best
from pathprune.report.page import Cell, Column, Details, Figure, Prose, Section, Table, Tone
from pathprune.report.theme import LINES, MARKERS, SERIES, panel, styled
from pathprune.report.wording import budget_words, interval, millions, p_value, percent, points, points_interval


def accuracy_section(results: Results) -> Section:
    """What each criterion keeps at each budget under each compensation."""
    images = f"{results.dense.num_images:,} evaluation images"
    seeds = f", means over {results.num_seeds} seeds" if results.num_seeds > 1 else ""
    return Section(
        "Accuracy kept",
        [
            Prose(
                f"Retention is the pruned model's top-1 as a share of the dense one's, on {images}{seeds}. Bands, bars "
                "and brackets are 95 % intervals (paired bootstrap over images)."
            ),
            _curves_figure(results),
            _intervals_figure(results),
            *(_retention_table(results, budget) for budget in results.budgets),
            Details("Every variant in numbers", [_full_table(results)]),
        ],
    )


def significance_section(results: Results) -> Section:
    """Differences to the best criterion of each budget and compensation, with a correction for their number."""
    number = len(results.criteria)
    tables = [_difference_table(results, budget) for budget in results.budgets if budget.kind != "max-drop"]
    return Section(
        "Which differences are differences",
        [
            Prose(
                "Top-1 of each criterion minus that of the best one under the same budget and compensation, in "
                "points, with the paired 95 % interval of the two. A difference counts where that interval is without "
                "0 and McNemar's exact test stays below 5 % after Holm's correction for all "
                f"{number * (number - 1) // 2} pairs of the setting; everything else is a tie. The best is named on "
                "the images that it is judged by, so its lead is a little flattered. All pairs are in "
                "`tables/significance.csv`."
            ),
            *tables,
        ],
    )


def _curves_figure(results: Results) -> Figure:
    return Figure(
        "retention",
        "Top-1 retained against multiply-accumulates saved",
        "Lines of retention over the share of MACs saved, a panel for each compensation and a line for each "
        "criterion; the numbers are in the tables below.",
        [_curves(results, compensation) for compensation in results.compensations],
        caption="A panel for each compensation, each with its own scale.",
    )


@styled()
def _curves(results: Results, compensation: str) -> Drawing:
    legend_rows = math.ceil(len(results.criteria) / 2)
    figure = panel(height=2.75 + 0.19 * legend_rows)
    axes = figure.subplots()
    for index, criterion in enumerate(results.criteria):
        entries = [e for e in results.entries if (e.criterion, e.compensation) == (criterion, compensation)]
        entries.sort(key=lambda entry: -entry.macs)
        saved = [0.0, *(100 * (1 - entry.macs / results.dense.macs) for entry in entries)]
        kept = [100.0, *(100 * entry.retention.value for entry in entries)]
        low = [100.0, *(100 * entry.retention.ci[0] for entry in entries)]
        high = [100.0, *(100 * entry.retention.ci[1] for entry in entries)]
        color, marker, line = _look(index)
        axes.fill_between(saved, low, high, color=color, alpha=0.13, linewidth=0)
        axes.plot(saved, kept, color=color, marker=marker, linestyle=line, label=criterion)
    figure.suptitle(f"compensation: {compensation}")
    axes.set_xlabel("MACs saved, %")
    axes.set_ylabel("top-1 retained, %")
    axes.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncols=2, handlelength=2.2, columnspacing=1.2)
    return figure


def _intervals_figure(results: Results) -> Figure:
    return Figure(
        "criteria",
        "Criteria side by side",
        "Retention of every criterion with its interval, a panel for each budget, a colour for each compensation; "
        "the numbers are in the tables below.",
        [_intervals(results, budget) for budget in results.budgets],
        caption="Best on top, a panel for each budget.",
    )


@styled()
def _intervals(results: Results, budget: Budget) -> Drawing:
    entries = results.at(budget=budget)
    order = sorted(results.criteria, key=lambda name: max(_kept(e) for e in entries if e.criterion == name))
    figure = panel(height=1.35 + 0.19 * len(results.compensations) + 0.24 * len(order))
    axes = figure.subplots()
    for index, compensation in enumerate(results.compensations):
        chosen = [entry for entry in entries if entry.compensation == compensation]
        color, marker, _ = _look(index)
        shift = 0.16 * (index - (len(results.compensations) - 1) / 2)
        axes.errorbar(
            [100 * _kept(entry) for entry in chosen],
            [order.index(entry.criterion) - shift for entry in chosen],
            xerr=[
                [100 * max(_kept(entry) - entry.retention.ci[0], 0) for entry in chosen],
                [100 * max(entry.retention.ci[1] - _kept(entry), 0) for entry in chosen],
            ],
            color=color,
            marker=marker,
            linestyle="none",
            elinewidth=1.3,
            label=compensation,
        )
    axes.set_yticks(range(len(order)), order)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    figure.suptitle(budget_words(budget))
    axes.set_xlabel("top-1 retained, %")
    figure.legend(loc="outside lower center", ncols=min(3, len(results.compensations)), handlelength=1)
    return figure


def _retention_table(results: Results, budget: Budget) -> Table:
    entries = results.at(budget=budget)
    saved = 1 - best(entries).macs / results.dense.macs
    order = sorted(results.criteria, key=lambda name: -max(_kept(e) for e in entries if e.criterion == name))
    rows: list[list[Cell | str]] = []
    for name in order:
        own = {entry.compensation: entry for entry in entries if entry.criterion == name}
        cells = (_retention_cell(results, own[c]) if c in own else "" for c in results.compensations)
        rows.append([name, *cells])
    return Table(
        f"{budget_words(budget)} ({percent(saved)} of MACs): top-1 retained, %. Green: the best of its column "
        "and what ties with it.",
        [Column("criterion", is_number=False), *(Column(f"`{name}`") for name in results.compensations)],
        rows,
    )


def _retention_cell(results: Results, entry: Entry) -> Cell:
    tone: Tone = "good" if results.leads(entry) else ""
    return Cell(f"{100 * _kept(entry):.1f}", interval(entry.retention.ci), tone)


def _difference_table(results: Results, budget: Budget) -> Table:
    columns = [Column("criterion", is_number=False)]
    for compensation in results.compensations:
        columns += [Column(f"`{compensation}`"), Column("p")]
    settings = {c: results.at(budget=budget, compensation=c) for c in results.compensations}
    rows: list[list[Cell | str]] = []
    for name in results.criteria:
        row: list[Cell | str] = [name]
        for entries in settings.values():
            entry = next((entry for entry in entries if entry.criterion == name), None)
            if entry is None:
                row += ["", ""]
                continue
            leader = best(entries)
            if entry.id == leader.id:
                row += [Cell("best", tone="good"), ""]
                continue
            result = results.pair(entry, leader).result
            is_tie = result.verdict == "tie"
            row += [
                Cell(
                    "tie" if is_tie else points(result.difference),
                    points_interval(result.ci),
                    "muted" if is_tie else "",
                ),
                Cell(p_value(result.p_value), tone="muted"),
            ]
        rows.append(row)
    return Table(budget_words(budget), columns, rows)


def _full_table(results: Results) -> Table:
    has_latency = any(entry.row.timing for entry in results.entries)
    headings = ["top-1 %", "top-5 %", "nll", "agrees with dense %", "neurons removed", "parameters", "MACs"]
    columns = [
        *(Column(heading, is_number=False) for heading in ("criterion", "compensation")),
        *map(Column, [*headings, *(("latency", "faster") if has_latency else ())]),
    ]
    rows: list[list[Cell | str]] = []
    starts = []
    for budget in results.budgets:
        starts.append(len(rows))
        for entry in results.at(budget=budget):
            row, timing = entry.row, entry.row.timing
            rows.append(
                [
                    entry.criterion,
                    entry.compensation,
                    Cell(f"{100 * entry.top1:.1f}", interval(row.top1_ci) if results.num_seeds == 1 else ""),
                    f"{100 * entry.top5:.1f}",
                    f"{entry.nll:.3f}",
                    f"{100 * entry.agreement:.1f}",
                    percent(row.neurons_removed, 1),
                    millions(row.num_params),
                    millions(entry.macs),
                    *((f"{timing.latency_ms:.1f} ms", f"{timing.speedup:.2f}×") if timing else ()),
                ]
            )
    return Table("Every variant", columns, rows, frozenset(starts))


def _kept(entry: Entry) -> float:
    return entry.retention.value


def _look(index: int) -> tuple[str, str, str]:
    """Colour, marker and line of the n-th series; marker and line tell apart those that share a colour."""
    again = index // len(SERIES)
    return SERIES[index % len(SERIES)], MARKERS[(index + 3 * again) % len(MARKERS)], LINES[again % len(LINES)]
