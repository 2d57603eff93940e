"""What a run was and what it took: costs, latency, recipe, environment, images."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure as Drawing

from pathprune.report.entries import Results
from pathprune.report.page import Cell, Code, Column, Details, Figure, Prose, Section, Table
from pathprune.report.rows import Timing
from pathprune.report.theme import ACCENT, MUTED, panel, styled
from pathprune.report.verdict import device
from pathprune.report.wording import millions, percent


def cost_section(results: Results) -> Section:
    """What scoring by each criterion took."""
    most = max(cost.seconds for cost in results.costs)
    rows: list[list[Cell | str]] = [
        [
            cost.criterion,
            Cell(_seconds(cost.seconds), share=cost.seconds / most if most else 0),
            _seconds(cost.mining_seconds),
            _seconds(cost.statistics_seconds),
            _seconds(cost.scoring_seconds),
            "" if cost.forward_passes is None else f"{cost.forward_passes:,.0f}",
        ]
        for cost in sorted(results.costs, key=lambda cost: cost.seconds)
    ]
    columns = ("in all", "mining", "statistics", "scoring", "forward passes")
    return Section(
        "What each criterion costs",
        [
            Prose(
                "From the dense model to a score of every neuron: seconds on this machine, and multiply-accumulates in "
                "forward passes of one image through the dense model. Mining and statistics are done once for all "
                "criteria that read them, and count here for each, as if it were alone."
            ),
            Table("Cost of scoring", [Column("criterion", is_number=False), *(Column(name) for name in columns)], rows),
            _fitting_table(results),
        ],
    )


def _fitting_table(results: Results) -> Table:
    """What fitting took under each compensation, for the variant that took most."""
    rows: list[list[Cell | str]] = []
    for compensation in results.compensations:
        passes = [entry.row.forward_passes for entry in results.entries if entry.compensation == compensation]
        fits = [each.fitting for each in passes if each and each.fitting is not None]
        if fits:
            rows.append([compensation, f"{max(fits):,.0f}"])
    columns = [Column("compensation", is_number=False), Column("forward passes")]
    return Table("Cost of fitting one model, statistics left out", columns, rows)


def latency_section(results: Results) -> Section:
    """Measured speed-up beside the saving in MACs, one point for each set of widths."""
    timed = _timed_models(results)
    dense = results.dense.timing
    assert dense is not None
    table = Table(
        f"Latency of {dense.latency_batch_size} images on {device(results)}: median, and the speed-up's quartiles",
        [Column("model", is_number=False), *map(Column, ("latency", "images/s", "faster", "MACs"))],
        [
            [
                "dense",
                f"{dense.latency_ms:.1f} ms",
                f"{dense.images_per_second:,.0f}",
                "1.00×",
                millions(results.dense.macs),
            ],
            *(_latency_row(model) for model in timed),
        ],
    )
    return Section(
        "Latency",
        [
            Figure(
                "speedup",
                "Speed-up against what MACs promise",
                "Points of measured speed-up with their quartiles over the speed-up that the saved MACs would give; "
                "the numbers are in the table below.",
                [_speedup_panel(timed, results.dense.macs)],
                caption="On the dashed line a saved MAC saves its share of time.",
            ),
            table,
        ],
    )


@dataclass(frozen=True)
class _TimedModel:
    """The timing of all variants of one set of widths, which share it."""

    neurons_removed: float
    macs: int
    timing: Timing


def _timed_models(results: Results) -> list[_TimedModel]:
    models = {}
    for entry in results.entries:
        row = entry.row
        if row.timing:
            models[tuple(row.kept_widths)] = _TimedModel(row.neurons_removed, row.macs, row.timing)
    return list(models.values())


def _latency_row(model: _TimedModel) -> list[Cell | str]:
    low, high = model.timing.speedup_spread
    return [
        f"{percent(model.neurons_removed)} of neurons removed",
        f"{model.timing.latency_ms:.1f} ms",
        f"{model.timing.images_per_second:,.0f}",
        Cell(f"{model.timing.speedup:.2f}×", f"[{low:.2f}, {high:.2f}]"),
        millions(model.macs),
    ]


@styled()
def _speedup_panel(timed: list[_TimedModel], dense_macs: int) -> Drawing:
    promised = [dense_macs / model.macs for model in timed]
    measured = [model.timing.speedup for model in timed]
    spread = [model.timing.speedup_spread for model in timed]
    figure = panel()
    axes = figure.subplots()
    end = max([1.1, *promised])
    axes.plot([1, end], [1, end], color=MUTED, linestyle="--", linewidth=1)
    axes.errorbar(
        promised,
        measured,
        yerr=[
            [max(value - low, 0) for value, (low, _) in zip(measured, spread, strict=True)],
            [max(high - value, 0) for value, (_, high) in zip(measured, spread, strict=True)],
        ],
        color=ACCENT,
        marker="o",
        linestyle="none",
        capsize=2,
    )
    axes.set_xlabel("dense MACs / pruned MACs")
    axes.set_ylabel("times faster")
    return figure


def setup_section(results: Results) -> Section:
    """Images, environment and recipe."""
    return Section(
        "How this was made",
        [
            Table(
                f"Images: {results.data}",
                [Column("used to", is_number=False), Column("split", is_number=False), Column("images")],
                [[split.use, f"`{split.split}`", f"{split.num_images:,}"] for split in results.splits],
            ),
            Prose(
                "No image that was mined or calibrated on is evaluated on: the run refuses data where one is.", "muted"
            ),
            Details(
                "Environment",
                [
                    Table(
                        "Versions and device",
                        [Column("what", is_number=False), Column("which", is_number=False)],
                        [[key, str(value)] for key, value in results.environment.items()],
                    )
                ],
            ),
            Details("Recipe, every default filled in", [Code(results.recipe)]),
        ],
    )


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:,.1f} s"
