"""Page section on the cost of each criterion and compensation."""

from __future__ import annotations

from pathprune.report.entries import Results
from pathprune.report.page import Cell, Column, Prose, Section, Table


def build_cost_section(results: Results) -> Section:
    """Build the section on the cost of scoring by each criterion, and of fitting by each compensation."""
    most = max(cost.seconds for cost in results.costs)
    rows: list[list[Cell | str]] = [
        [
            cost.criterion,
            Cell(_format_seconds(cost.seconds), share=cost.seconds / most if most else 0),
            _format_seconds(cost.mining_seconds),
            _format_seconds(cost.statistics_seconds),
            _format_seconds(cost.scoring_seconds),
            "" if cost.forward_passes is None else f"{cost.forward_passes:,.0f}",
        ]
        for cost in sorted(results.costs, key=lambda cost: cost.seconds)
    ]
    columns = ("total", "mining", "statistics", "scoring", "forward passes")
    return Section(
        "Cost of each criterion",
        [
            Prose(
                "Cost of scoring every neuron of the dense model: seconds on this machine, and multiply-accumulates in "
                "units of one forward pass of one image through the dense model. Criteria share mining and statistics, "
                "which run once. Here they count in full for each criterion that needs them."
            ),
            Table("Cost of scoring", [Column("criterion", is_number=False), *map(Column, columns)], rows),
            _build_fitting_table(results),
        ],
    )


def _build_fitting_table(results: Results) -> Table:
    """Build the table of the cost of fitting under each compensation, for the variant with the largest cost."""
    rows: list[list[Cell | str]] = []
    for compensation in results.compensations:
        passes = [entry.row.forward_passes for entry in results.entries if entry.compensation == compensation]
        fits = [each.fitting for each in passes if each and each.fitting is not None]
        if fits:
            rows.append([compensation, f"{max(fits):,.0f}"])
    return Table(
        "Cost of fitting one model, without statistics",
        [Column("compensation", is_number=False), Column("forward passes")],
        rows,
    )


def _format_seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:,.1f} s"
