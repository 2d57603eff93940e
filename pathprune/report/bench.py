"""Terminal table and page of a bench: latency and memory of dense and pruned models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FixedLocator, NullLocator
from rich.table import Table as TerminalTable

from pathprune.report.page import Cell, Column, Figure, Page, Prose, Section, Table, Tone
from pathprune.report.rows import BenchRow
from pathprune.report.terminal import new_terminal_table
from pathprune.report.theme import INK, figure_style, new_panel, series_style

GOAL = 0.9
"""Share of the saving in multiply-accumulates that the speed-up should reach."""
_HEADINGS = ("latency", "quartiles", "images/s", "memory", "MACs", "speed-up", "MAC saving", "realised")


@dataclass(frozen=True)
class Setting:
    """Group, backend and batch size that the models of a bench share."""

    group: str
    backend: str
    batch_size: int

    @classmethod
    def of(cls, row: BenchRow) -> Setting:
        return cls(row.group, row.backend, row.batch_size)


def build_bench_table(rows: Sequence[BenchRow]) -> TerminalTable:
    """Build a terminal table of one line per model, grouped by backend and batch size."""
    table = new_terminal_table(_describe_bench(rows))
    for heading in ("backend", "batch", "model"):
        table.add_column(heading, no_wrap=heading != "model")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        setting = Setting.of(row)
        if setting != previous:
            table.add_section()
        shown = ("", "") if setting == previous else (row.backend, str(row.batch_size))
        table.add_row(*shown, row.model, *_format_cells(row))
        previous = setting
    return table


def compose_bench_notes(rows: Sequence[BenchRow]) -> list[str]:
    """Compose a note for each model that is slower than its saving in multiply-accumulates allows, with advice."""
    notes = []
    for row in rows:
        if row.mac_saving > 1 and _is_below_goal(row):
            note = (
                f"{row.model}, {row.backend}, batch size {row.batch_size}: the speed-up is {row.speedup:.2f}×; its "
                f"saving in multiply-accumulates allows {row.mac_saving:.2f}×."
            )
            if any(width % 16 for width in row.widths):
                note += " Some of its widths are not multiples of 16: try prune.round_to=16 or 64."
            notes.append(note)
    return notes


def build_bench_page(rows: Sequence[BenchRow]) -> Page:
    """Build the page of a bench: the largest speed-up, a figure of all speed-ups, and a table."""
    best = max((row for row in rows if not row.is_dense), key=lambda row: row.speedup, default=None)
    headline = "Only the dense model was measured."
    if best is not None:
        headline = (
            f"The largest speed-up is {best.speedup:.2f}×: `{best.model}`, backend {best.backend}, batch size "
            f"{best.batch_size}. The model needs {best.mac_saving:.2f}× fewer multiply-accumulates than the dense "
            "model."
        )
    return Page("Latency and memory", _describe_bench(rows), [headline], sections=[_build_section(rows)])


def _build_section(rows: Sequence[BenchRow]) -> Section:
    settings = [Setting.of(row) for row in rows]
    starts = frozenset(index for index in range(1, len(rows)) if settings[index] != settings[index - 1])
    table = Table(
        "Median latency of a batch, with quartiles; the models took turns. Memory: peak of a forward pass. Speed-up "
        "and MAC saving: dense over pruned. Realised: speed-up over MAC saving.",
        [
            *(Column(name, is_number=name == "batch") for name in ("model", "backend", "batch")),
            *map(Column, _HEADINGS),
        ],
        [_build_row(row) for row in rows],
        group_starts=starts,
    )
    notes = [Prose(note, tone="muted") for note in compose_bench_notes(rows)]
    pruned = [(row.group, row.model) for row in rows if not row.is_dense]
    if not pruned:
        return Section("Latency", [table, *notes])
    figure = Figure(
        "latency",
        "Speed-up by batch size",
        "One panel per pruned model: speed-up over batch size, one line per backend. A dashed line marks the saving in "
        "multiply-accumulates.",
        [_draw_speedups(rows, group, model) for group, model in dict.fromkeys(pruned)],
        caption="Error bars: quartiles over rounds. Dashed line: the saving in multiply-accumulates.",
    )
    return Section("Latency", [figure, table, *notes])


def _build_row(row: BenchRow) -> list[Cell | str]:
    *cells, realised = _format_cells(row)
    tone: Tone = "bad" if _is_below_goal(row) else ""
    return [row.model, row.backend, str(row.batch_size), *cells, Cell(realised, tone=tone)]


@figure_style()
def _draw_speedups(rows: Sequence[BenchRow], group: str, model: str) -> Drawing:
    own = [row for row in rows if (row.group, row.model) == (group, model)]
    figure = new_panel()
    axes = figure.subplots()
    for index, backend in enumerate(dict.fromkeys(row.backend for row in own)):
        points = sorted((row for row in own if row.backend == backend), key=lambda row: row.batch_size)
        style = series_style(index)
        axes.errorbar(
            [row.batch_size for row in points],
            [row.speedup for row in points],
            yerr=[
                [row.speedup - row.speedup_spread[0] for row in points],
                [row.speedup_spread[1] - row.speedup for row in points],
            ],
            label=backend,
            color=style.color,
            marker=style.marker,
            linestyle=style.linestyle,
            capsize=2,
        )
    axes.axhline(own[0].mac_saving, color=INK, linestyle="--", linewidth=1)
    axes.axhline(1, color=INK, linewidth=0.6)
    axes.set_xscale("log", base=2)
    sizes = sorted({row.batch_size for row in own})
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(size) for size in sizes])
    axes.set_ylim(bottom=0)
    axes.set_title(model)
    axes.set_xlabel("batch size")
    axes.set_ylabel("speed-up")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _describe_bench(rows: Sequence[BenchRow]) -> str:
    first = rows[0]
    device = f"{first.threads} CPU threads" if first.device == "cpu" else first.device
    return f"{', '.join(dict.fromkeys(row.group for row in rows))} on {device}, {first.dtype}"


def _format_cells(row: BenchRow) -> list[str]:
    """Format the cells under `_HEADINGS`; the dense model's row has no comparison with the dense model."""
    low, high = row.latency_spread_ms
    return [
        f"{row.latency_ms:.1f} ms",
        f"{low:.1f}–{high:.1f}",
        f"{row.images_per_second:,.0f}",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f} MiB",
        f"{row.macs / 1e6:,.0f} M",
        "" if row.is_dense else f"{row.speedup:.2f}×",
        "" if row.is_dense else f"{row.mac_saving:.2f}×",
        "" if row.is_dense else f"{row.saving_realised:.2f}",
    ]


def _is_below_goal(row: BenchRow) -> bool:
    return not row.is_dense and row.saving_realised < GOAL
