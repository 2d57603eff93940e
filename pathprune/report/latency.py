"""Page section on the latency of a run's models."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure as Drawing

from pathprune.report.entries import Results
from pathprune.report.page import Cell, Column, Figure, Section, Table
from pathprune.report.rows import Timing
from pathprune.report.theme import ACCENT, MUTED, figure_style, new_panel
from pathprune.report.verdict import describe_device
from pathprune.report.wording import format_millions, format_percent


@dataclass(frozen=True)
class TimedWidths:
    """Timing of all variants with equal widths, which are timed once."""

    neurons_removed: float
    macs: int
    timing: Timing


def build_latency_section(results: Results, dense: Timing) -> Section:
    """Build the section that compares the measured speed-up with the saving in MACs."""
    models = _list_timed_widths(results)
    table = Table(
        f"Median latency of a batch of {dense.latency_batch_size} images on {describe_device(results)}. Brackets: "
        "quartiles of the speed-up.",
        [Column("model", is_number=False), *map(Column, ("latency", "images/s", "speed-up", "MACs"))],
        [
            [
                "dense",
                f"{dense.latency_ms:.1f} ms",
                f"{dense.images_per_second:,.0f}",
                "1.00×",
                format_millions(results.dense.macs),
            ],
            *(_build_row(model) for model in models),
        ],
    )
    figure = Figure(
        "speedup",
        "Measured speed-up against saved MACs",
        "Points of measured speed-up with quartiles, over the ratio of dense MACs to pruned MACs. The table below has "
        "the numbers.",
        [_draw_speedups(models, results.dense.macs)],
        caption="On the dashed line, latency falls as much as MACs.",
    )
    return Section("Latency", [figure, table])


def _list_timed_widths(results: Results) -> list[TimedWidths]:
    models = {}
    for entry in results.entries:
        row = entry.row
        if row.timing:
            models[tuple(row.kept_widths)] = TimedWidths(row.neurons_removed, row.macs, row.timing)
    return list(models.values())


def _build_row(model: TimedWidths) -> list[Cell | str]:
    low, high = model.timing.speedup_spread
    return [
        f"{format_percent(model.neurons_removed)} of neurons removed",
        f"{model.timing.latency_ms:.1f} ms",
        f"{model.timing.images_per_second:,.0f}",
        Cell(f"{model.timing.speedup:.2f}×", f"[{low:.2f}, {high:.2f}]"),
        format_millions(model.macs),
    ]


@figure_style()
def _draw_speedups(models: list[TimedWidths], dense_macs: int) -> Drawing:
    mac_ratios = [dense_macs / model.macs for model in models]
    speedups = [model.timing.speedup for model in models]
    spreads = [model.timing.speedup_spread for model in models]
    figure = new_panel()
    axes = figure.subplots()
    end = max([1.1, *mac_ratios])
    axes.plot([1, end], [1, end], color=MUTED, linestyle="--", linewidth=1)
    axes.errorbar(
        mac_ratios,
        speedups,
        yerr=[
            [max(value - low, 0) for value, (low, _) in zip(speedups, spreads, strict=True)],
            [max(high - value, 0) for value, (_, high) in zip(speedups, spreads, strict=True)],
        ],
        color=ACCENT,
        marker="o",
        linestyle="none",
        capsize=2,
    )
    axes.set_xlabel("dense MACs / pruned MACs")
    axes.set_ylabel("speed-up")
    return figure
