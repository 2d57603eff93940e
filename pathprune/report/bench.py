"""Latency and memory of models, as the terminal and a page show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FixedLocator, NullLocator
from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable

from pathprune.report.page import Cell, Column, Figure, Page, Prose, Section, Table
from pathprune.report.rows import BenchRow
from pathprune.report.theme import INK, LINES, MARKERS, SERIES, panel, styled

GOAL = 0.9  # of the saving in multiply-accumulates, at least, should be had in time
_HEADINGS = ("latency", "quartiles", "images/s", "peak memory", "MACs", "faster", "MACs saved", "of it")


def bench_table(rows: Sequence[BenchRow]) -> TerminalTable:
    """One line per model, a section per backend and batch size."""
    table = TerminalTable(title=_title(rows), header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("backend", "batch", "model"):
        table.add_column(heading, no_wrap=heading != "model")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    before: tuple[Any, ...] = ()
    for row in rows:
        place = (row.group, row.backend, row.batch_size)
        if place != before:
            table.add_section()
        shown = (row.backend, str(row.batch_size)) if place != before else ("", "")
        table.add_row(*shown, row.model, *_cells(row))
        before = place
    return table


def bench_words(rows: Sequence[BenchRow]) -> list[str]:
    """What to know of the figures: where the saving in multiply-accumulates is not had in time, and what to do."""
    words = []
    for row in rows:
        if not row.is_dense and row.mac_saving > 1 and row.saving_realised < GOAL:
            odd = [width for width in row.widths if width % 16]
            advice = "; its widths are no multiples of 16: try prune.round_to=16 or 64" if odd else ""
            words.append(
                f"{row.model}, {row.backend}, batch {row.batch_size}: {row.speedup:.2f}× faster, where "
                f"{row.mac_saving:.2f}× fewer multiply-accumulates would allow{advice}"
            )
    return words


def bench_page(rows: Sequence[BenchRow]) -> Page:
    """The page of a measurement."""
    best = max((row for row in rows if not row.is_dense), key=lambda row: row.speedup, default=None)
    headline = ["Only the dense model was measured."]
    if best is not None:
        headline = [
            f"At best {best.speedup:.2f}× faster: `{best.model}`, {best.backend}, batches of "
            f"{best.batch_size}, with {best.mac_saving:.2f}× fewer multiply-accumulates."
        ]
    return Page("Latency and memory", _title(rows), headline, sections=[bench_section(rows)])


def bench_section(rows: Sequence[BenchRow]) -> Section:
    """The table, and speed-up against batch size for every model."""
    places = [(row.group, row.backend, row.batch_size) for row in rows]
    starts = frozenset(index for index in range(1, len(rows)) if places[index] != places[index - 1])
    names = ("model", "backend", "batch")
    table = Table(
        "Median latency of a batch, with quartiles; models took turns. *Of it*: speed-up over the saving in MACs.",
        [*(Column(name, is_number=name == "batch") for name in names), *(Column(name) for name in _HEADINGS)],
        [
            [
                row.model,
                row.backend,
                str(row.batch_size),
                *_cells(row)[:-1],
                Cell(_cells(row)[-1], tone="bad" if not row.is_dense and row.saving_realised < GOAL else ""),
            ]
            for row in rows
        ],
        group_starts=starts,
    )
    pruned = [(row.group, row.model) for row in rows if not row.is_dense]
    notes = [Prose(words, tone="muted") for words in bench_words(rows)]
    if not pruned:
        return Section("Latency", [table, *notes])
    figure = Figure(
        "latency",
        "Speed-up by batch size",
        "A panel for each pruned model: how many times faster than the dense model it is, a line per backend over the "
        "batch size; a rule shows how many times fewer multiply-accumulates it has.",
        [_panel(rows, group, model) for group, model in dict.fromkeys(pruned)],
        caption="Bars: quartiles of the rounds' ratios. Dashed: what the saving in multiply-accumulates would allow.",
    )
    return Section("Latency", [figure, table, *notes])


def _panel(rows: Sequence[BenchRow], group: str, model: str) -> Drawing:
    with styled():
        return _speedups(rows, group, model)


def _speedups(rows: Sequence[BenchRow], group: str, model: str) -> Drawing:
    own = [row for row in rows if (row.group, row.model) == (group, model)]
    figure = panel()
    axes = figure.subplots()
    for index, backend in enumerate(dict.fromkeys(row.backend for row in own)):
        points = sorted((row for row in own if row.backend == backend), key=lambda row: row.batch_size)
        values = [row.speedup for row in points]
        axes.errorbar(
            [row.batch_size for row in points],
            values,
            yerr=[
                [value - row.speedup_spread[0] for value, row in zip(values, points, strict=True)],
                [row.speedup_spread[1] - value for value, row in zip(values, points, strict=True)],
            ],
            label=backend,
            color=SERIES[index],
            marker=MARKERS[index],
            linestyle=LINES[0],
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
    axes.set_xlabel("images in a batch")
    axes.set_ylabel("times faster")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _title(rows: Sequence[BenchRow]) -> str:
    first = rows[0]
    where = f"{first.threads} threads of the CPU" if first.device == "cpu" else str(first.device)
    return f"{', '.join(dict.fromkeys(row.group for row in rows))} on {where}, {first.dtype}"


def _cells(row: BenchRow) -> list[str]:
    low, high = row.latency_spread_ms
    is_dense = row.is_dense
    return [
        f"{row.latency_ms:.1f} ms",
        f"{low:.1f}–{high:.1f}",
        f"{row.images_per_second:,.0f}",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f} MiB",
        f"{row.macs / 1e6:,.0f} M",
        "" if is_dense else f"{row.speedup:.2f}×",
        "" if is_dense else f"{row.mac_saving:.2f}×",
        "" if is_dense else f"{row.saving_realised:.2f}",
    ]
