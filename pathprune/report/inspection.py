"""Terminal tables and page of an inspection."""

# C classes, N images

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure as Drawing
from rich.table import Table as TerminalTable
from torch import Tensor

from pathprune.evaluation import Interval
from pathprune.inspection import PathKind, PathMeasure
from pathprune.report.findings import Findings, Mean
from pathprune.report.grid import draw_grid
from pathprune.report.page import (
    Cell,
    Column,
    Details,
    Fact,
    Figure,
    Gallery,
    Page,
    Prose,
    Section,
    Table,
    Tone,
)
from pathprune.report.terminal import to_terminal_table
from pathprune.report.wording import format_percent, format_signed

_KIND_NAMES: dict[PathKind, str] = {
    "jas": "joint attribution",
    "activation": "activation",
    "influence-pattern": "influence pattern",
    "random": "random",
}
_EFFECT_NOTE = (
    "Change in the class probability and in the share of correctly classified images, in points, when the neurons on "
    "the path are set to zero (removed) or doubled (enhanced), with 95 % intervals. Red and green: the interval of the "
    "difference to random paths on the same images excludes 0."
)
_EFFECTS: dict[str, Callable[[PathMeasure], Tensor]] = {
    "removed: probability": lambda measure: measure.removed.probability,
    "removed: top-1": lambda measure: measure.removed.correct,
    "enhanced: probability": lambda measure: measure.enhanced.probability,
    "enhanced: top-1": lambda measure: measure.enhanced.correct,
}
_MAX_CLASSES = 40  # in the figure; more names would be too small to read


def build_inspection_tables(findings: Findings) -> list[TerminalTable]:
    """Build the terminal tables of strength, effects, classes and neurons."""
    tables = (
        build_strength_table(findings),
        build_effect_table(findings),
        build_class_table(findings),
        build_neuron_table(findings),
    )
    return [to_terminal_table(table) for table in tables]


def build_inspection_page(findings: Findings) -> Page:
    """Build the page of an inspection: conclusion, strength, effects, classes and neurons."""
    removal = findings.removal_effect
    return Page(
        f"{findings.name}: inspection of neuron paths",
        f"{findings.num_images} of {findings.num_mined} mined images, {_describe_tokens(findings)}. The images are not "
        "held out: the page explains the model and does not test it.",
        [compose_inspection_verdict(findings)],
        [
            Fact(
                format_signed(100 * removal.value, digits=2),
                "points of class probability",
                "removing the located path, compared with a random path",
            ),
            Fact(format_percent(findings.share_above("activation")), "of images", "JAS above the activation path's"),
        ],
        [
            Section("Strength of the paths", [build_strength_table(findings)]),
            Section("Effects of the paths", [build_effect_table(findings), Prose(_EFFECT_NOTE, tone="muted")]),
            *_build_class_sections(findings),
            _build_neuron_section(findings),
        ],
    )


def compose_inspection_verdict(findings: Findings) -> str:
    """Compose a sentence on the effect of removing the located path, compared with a random path."""
    removal = findings.removal_effect
    low, high = (100 * bound for bound in removal.ci)
    if not removal.excludes_zero:
        difference = f"{format_signed(100 * removal.value, digits=2)} points {_format_signed_interval((low, high))}"
        return (
            "Removing the located path and removing a random path change the class probability alike: the difference "
            f"is {difference}."
        )
    verb = "lowers" if removal.value < 0 else "raises"
    smallest, largest = sorted((abs(low), abs(high)))
    return (
        f"Removing the located path {verb} the class probability by {100 * abs(removal.value):.2f} points "
        f"[{smallest:.2f}, {largest:.2f}] more than removing a random path."
    )


def build_strength_table(findings: Findings) -> Table:
    """Build the table of joint attribution scores of located paths, baselines' paths and random paths."""
    rows: list[list[Cell | str]] = []
    for kind, name in _KIND_NAMES.items():
        mean = Mean.of(findings.measures[kind].jas)
        share = "" if kind == "jas" else format_percent(findings.share_above(kind))
        rows.append([name, Cell(f"{mean.value:.4g}", f"[{mean.ci[0]:.4g}, {mean.ci[1]:.4g}]"), share])
    return Table(
        f"Joint attribution score (JAS) of paths, mean over {findings.num_images} images with 95 % interval",
        [Column("path", is_number=False), Column("JAS"), Column("images where joint attribution is higher")],
        rows,
    )


def build_effect_table(findings: Findings) -> Table:
    """Build the table of the effects of removing and enhancing each kind of path."""
    rows: list[list[Cell | str]] = []
    for kind, name in _KIND_NAMES.items():
        cells = [_build_effect_cell(findings, kind, effect) for effect in _EFFECTS.values()]
        rows.append([name, *cells])
    return Table(
        f"Points gained or lost when the path is removed or enhanced ({_describe_tokens(findings)})",
        [Column("path", is_number=False), *map(Column, _EFFECTS)],
        rows,
    )


def _build_effect_cell(findings: Findings, kind: PathKind, effect: Callable[[PathMeasure], Tensor]) -> Cell:
    values_N, random_N = effect(findings.measures[kind]), effect(findings.measures["random"])
    mean = Mean.of(values_N)
    tone: Tone = ""
    if kind != "random" and Mean.of(values_N - random_N).excludes_zero:
        tone = "bad" if mean.value < 0 else "good"
    text = format_signed(100 * mean.value, digits=2)
    return Cell(text, _format_signed_interval((100 * mean.ci[0], 100 * mean.ci[1])), tone=tone)


def build_class_table(findings: Findings, *, number: int = 8) -> Table:
    """Build the table of the pairs of classes with the largest overlap."""
    names, overlap_CC = findings.class_names, findings.overlap_CC
    pairs = [(a, b) for a, b in combinations(range(len(names)), 2) if not overlap_CC[a, b].isnan()]
    pairs.sort(key=lambda pair: -float(overlap_CC[pair]))
    return Table(
        "Pairs of classes whose paths have the most neurons in common",
        [
            *(Column("class", is_number=False), Column("class", is_number=False)),
            *map(Column, ("shared neurons", "within each class")),
        ],
        [
            [
                names[a],
                names[b],
                _format_overlap(overlap_CC[a, b]),
                f"{_format_overlap(overlap_CC[a, a])}, {_format_overlap(overlap_CC[b, b])}",
            ]
            for a, b in pairs[:number]
        ],
    )


def build_neuron_table(findings: Findings) -> Table:
    """Build the table of the most used neurons of every block."""
    rows: list[list[Cell | str]] = [
        [
            str(view.block),
            str(view.neuron),
            format_percent(view.share),
            ", ".join(f"{name} {format_percent(share)}" for name, share in view.classes),
        ]
        for view in findings.neurons
    ]
    blocks = [view.block for view in findings.neurons]
    return Table(
        f"Neurons on most paths, of {findings.num_mined} images",
        [*map(Column, ("block", "neuron", "share of paths")), Column("classes that use it most", is_number=False)],
        rows,
        group_starts=frozenset(index for index in range(1, len(blocks)) if blocks[index] != blocks[index - 1]),
    )


def _build_class_sections(findings: Findings) -> list[Section]:
    """Build the section on classes that share paths; none if fewer than two classes have an overlap."""
    order = [index for index in findings.class_order if not findings.overlap_CC[index].isnan().all()][:_MAX_CLASSES]
    if len(order) < 2:
        return []
    num_hidden = len(findings.class_names) - len(order)
    figure = Figure(
        "shared-paths",
        "Share of path neurons that two images have in common",
        "A grid of classes by classes, similar classes side by side. A cell is darker if the paths of two images of "
        "the classes share more neurons.",
        [_draw_overlap(findings, order)],
        caption="Mean over pairs of different images and over blocks, in %. Hierarchical clustering gives the order."
        + (f" {num_hidden} more classes are not shown." if num_hidden else ""),
        keep_size=True,
    )
    return [Section("Classes that share paths", [figure, build_class_table(findings)])]


def _draw_overlap(findings: Findings, order: Sequence[int]) -> Drawing:
    names = [findings.class_names[index] for index in order]
    overlap_CC = findings.overlap_CC[order][:, order].numpy()
    low, high = float(np.nanmin(overlap_CC)), float(np.nanmax(overlap_CC))
    shades_CC = (overlap_CC - low) / ((high - low) or 1.0)
    labels = [[f"{100 * value:.0f}" for value in row] for row in overlap_CC.tolist()]
    return draw_grid(shades_CC, labels, row_names=names, column_names=names)


def _build_neuron_section(findings: Findings) -> Section:
    galleries = [
        Gallery(
            f"Block {view.block}, neuron {view.neuron}: on {format_percent(view.share)} of the paths", view.pictures
        )
        for view in findings.neurons
    ]
    text = (
        "The pictures are the images with the highest activation of each neuron, highest first. They come from all "
        "classes, not only from the classes that use the neuron most."
    )
    return Section(
        "Most used neurons",
        [build_neuron_table(findings), Prose(text), Details("Images with the highest activation", galleries)],
    )


def _describe_tokens(findings: Findings) -> str:
    return "at the class token" if findings.tokens == "class" else "at all tokens"


def _format_signed_interval(interval: Interval) -> str:
    return f"[{format_signed(interval[0], digits=2)}, {format_signed(interval[1], digits=2)}]"


def _format_overlap(share: Tensor) -> str:
    return "–" if share.isnan() else format_percent(float(share), 1)
