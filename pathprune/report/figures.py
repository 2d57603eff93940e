"""The picture of a run: accuracy kept against neurons removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

# Okabe & Ito's palette: told apart with any colour vision; path guidance always has the first colour
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")
_MARKERS = "osD^vPX*"


def retention_figure(rows: Sequence[Mapping[str, Any]], file: Path) -> Figure:
    """Draw top-1 against the share of neurons removed, a panel per compensation; saved as `.svg` and `.png`.

    Bars are 95 % intervals. Points of one budget are set slightly apart so that bars do not hide each other.
    """
    dense, *pruned = rows
    compensations = list(dict.fromkeys(map(_terms, pruned))) or [""]
    names = list(dict.fromkeys(_name(row) for row in pruned))
    figure = Figure(figsize=(1.2 + 4.6 * len(compensations), 4.2), layout="constrained")
    panels = figure.subplots(1, len(compensations), sharey=True, squeeze=False)[0]
    for panel, compensation in zip(panels, compensations, strict=True):
        panel.axhline(dense["top1"], color="0.45", linestyle="--", linewidth=1)
        panel.annotate("dense", (0, dense["top1"]), (2, 3), textcoords="offset points", color="0.35", fontsize=9)
        for index, name in enumerate(names):
            points = [row for row in pruned if _name(row) == name and _terms(row) == compensation]
            points = [dense, *sorted(points, key=lambda row: row["neurons_removed"])]
            offset = 0.006 * (index - (len(names) - 1) / 2)
            panel.errorbar(
                [row["neurons_removed"] + (offset if row is not dense else 0) for row in points],
                [row["top1"] for row in points],
                yerr=[
                    [row["top1"] - row["top1_ci"][0] for row in points],
                    [row["top1_ci"][1] - row["top1"] for row in points],
                ],
                label=name,
                color=_COLORS[index % len(_COLORS)],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=5,
                linewidth=1.6,
                capsize=2,
            )
        panel.set_title(f"compensation: {compensation}" if compensation else "dense", fontsize=11)
        panel.set_xlabel("MLP neurons removed")
        panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.set_xlim(left=0)
        panel.set_ylim(0, 1)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"top-1 on {dense['num_images']:,} images")
    if names:
        panels[-1].legend(frameon=False, fontsize=9, loc="lower left")
    file.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".svg", ".png"):
        figure.savefig(file.with_suffix(suffix), dpi=160)
    return figure


def _name(row: Mapping[str, Any]) -> str:
    options = row["criterion_options"]
    return f"{row['criterion']} {options}" if options else str(row["criterion"])


def _terms(row: Mapping[str, Any]) -> str:
    return f"{row['compensation']}{' + recovery' if row['recovery'] else ''}"
