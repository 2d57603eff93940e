"""Findings of an inspection, as terminal tables and as a page."""

# C classes, N images

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure as Drawing
from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable
from torch import Tensor

from pathprune.evaluation.bootstrap import excludes_zero, mean_interval
from pathprune.inspection import PathKind, PathMeasure, PathMeasures
from pathprune.report.grid import draw_grid
from pathprune.report.page import Cell, Column, Details, Fact, Figure, Gallery, Page, Picture, Prose, Section, Table

_KIND_NAMES: dict[PathKind, str] = {
    "jas": "joint attribution",
    "activation": "activation",
    "influence-pattern": "influence pattern",
    "random": "random",
}
_EFFECTS: dict[str, Callable[[PathMeasure], Tensor]] = {
    "removed: probability": lambda measure: measure.removed.probability,
    "removed: top-1": lambda measure: measure.removed.correct,
    "enhanced: probability": lambda measure: measure.enhanced.probability,
    "enhanced: top-1": lambda measure: measure.enhanced.correct,
}
_MAX_CLASSES = 40  # in the figure; the names of more classes are illegible


@dataclass(frozen=True)
class NeuronView:
    """Neuron that many paths use, with the classes that use it most and the images that activate it most."""

    block: int
    neuron: int
    share: float  # of all images, with the neuron on their path
    classes: Sequence[tuple[str, float]]  # name, share of the class's images
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Findings:
    """Results of an inspection."""

    name: str
    tokens: str
    class_names: tuple[str, ...]
    measures: PathMeasures
    overlap_CC: Tensor  # share of path neurons that two different images have in common
    class_order: list[int]  # classes of large overlap side by side
    num_mined: int
    neurons: Sequence[NeuronView]

    @property
    def num_images(self) -> int:
        """The number of measured images."""
        return self.measures.num_images


@dataclass(frozen=True)
class Mean:
    """Mean over images with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values_N: Tensor) -> Mean:
        """Return the mean of the images' values."""
        low, high = mean_interval(values_N.numpy())
        return cls(float(values_N.mean()), low, high)

    @property
    def is_clear(self) -> bool:
        """True if the interval excludes 0."""
        return excludes_zero((self.low, self.high))


def inspection_tables(findings: Findings) -> list[TerminalTable]:
    """Return the tables of strength, effects, classes and neurons."""
    return [_terminal(table) for table in (strength_table(findings), effect_table(findings), class_table(findings))] + [
        _terminal(neuron_table(findings))
    ]


def inspection_page(findings: Findings) -> Page:
    """Return the whole inspection as a page."""
    best = _removal_against_random(findings)
    return Page(
        f"{findings.name}: neuron paths, inspected",
        f"{findings.num_images} of {findings.num_mined} mined images, {_of(findings)}; an explanation, not a test",
        [inspection_words(findings)],
        [
            Fact(f"{100 * best.value:+.2f}", "points of probability, path removed", "more than a random path's"),
            Fact(f"{_share_above(findings, 'activation'):.0%}", "of images: higher JAS than the activation path's"),
        ],
        [
            Section("How strong are the paths?", [strength_table(findings)]),
            Section("What effects do the paths have?", [effect_table(findings), Prose(_EFFECT_NOTE, tone="muted")]),
            *_class_sections(findings),
            *_neuron_sections(findings),
        ],
    )


def inspection_words(findings: Findings) -> str:
    """Return the verdict in one sentence."""
    change = _removal_against_random(findings)
    how = f"{100 * abs(change.value):.2f} points [{100 * change.low:+.2f}, {100 * change.high:+.2f}]"
    if not change.is_clear:
        return f"Removing the located path changes the class probability no more than a random path does: {how}."
    word = "lowers" if change.value < 0 else "raises"
    return f"Removing the located path {word} the probability of the class by {how} more than a random path does."


_EFFECT_NOTE = (
    "Change of the explained class's probability and of the share of correctly classified images, in points, when the "
    "neurons on the path are set to zero or doubled; with 95 % intervals. Bold colours: the interval of the difference "
    "to random paths, image by image, excludes 0."
)


def strength_table(findings: Findings) -> Table:
    """Return the joint attribution scores of located paths, of the baselines' paths and of random paths."""
    rows: list[list[Cell | str]] = []
    for kind, name in _KIND_NAMES.items():
        mean = Mean.of(findings.measures[kind].jas)
        beaten = "" if kind == "jas" else f"{_share_above(findings, kind):.0%}"
        rows.append([name, Cell(f"{mean.value:.4g}", f"[{mean.low:.4g}, {mean.high:.4g}]"), beaten])
    return Table(
        f"Joint attribution score of paths, mean over {findings.num_images} images",
        [Column("path", is_number=False), Column("JAS"), Column("the located path's is higher")],
        rows,
    )


def effect_table(findings: Findings) -> Table:
    """Return the effects of removing and enhancing each kind of path."""
    rows: list[list[Cell | str]] = []
    for kind, name in _KIND_NAMES.items():
        cells: list[Cell | str] = [name]
        for effect in _EFFECTS.values():
            values_N, random_N = effect(findings.measures[kind]), effect(findings.measures["random"])
            mean = Mean.of(values_N)
            clear = kind != "random" and Mean.of(values_N - random_N).is_clear
            text, note = f"{100 * mean.value:+.2f}", f"[{100 * mean.low:+.2f}, {100 * mean.high:+.2f}]"
            cells.append(Cell(text, note, tone=("bad" if mean.value < 0 else "good") if clear else ""))
        rows.append(cells)
    return Table(
        f"Points gained or lost when the path is removed or enhanced ({_of(findings)})",
        [Column("path", is_number=False), *map(Column, _EFFECTS)],
        rows,
    )


def class_table(findings: Findings, *, number: int = 8) -> Table:
    """Return the pairs of classes with the largest overlap."""
    names = findings.class_names
    pairs = [(float(findings.overlap_CC[a, b]), a, b) for a, b in combinations(range(len(names)), 2)]
    pairs = sorted((pair for pair in pairs if not np.isnan(pair[0])), key=lambda pair: (-pair[0], *pair[1:]))
    return Table(
        "Classes whose paths have most neurons in common",
        [Column("class", is_number=False), Column("class", is_number=False), Column("shared"), Column("within each")],
        [
            [
                names[a],
                names[b],
                f"{share:.1%}",
                f"{_percent(findings.overlap_CC[a, a])}, {_percent(findings.overlap_CC[b, b])}",
            ]
            for share, a, b in pairs[:number]
        ],
    )


def neuron_table(findings: Findings) -> Table:
    """Return the most used neurons of every block."""
    rows: list[list[Cell | str]] = [
        [
            str(view.block),
            str(view.neuron),
            f"{view.share:.0%}",
            ", ".join(f"{name} {share:.0%}" for name, share in view.classes),
        ]
        for view in findings.neurons
    ]
    blocks = [view.block for view in findings.neurons]
    return Table(
        f"Neurons on most paths, of {findings.num_mined} images",
        [*map(Column, ("block", "neuron", "on paths of")), Column("classes that use it most", is_number=False)],
        rows,
        group_starts=frozenset(place for place in range(1, len(blocks)) if blocks[place] != blocks[place - 1]),
    )


def _class_sections(findings: Findings) -> list[Section]:
    order = [index for index in findings.class_order if not findings.overlap_CC[index].isnan().all()][:_MAX_CLASSES]
    if len(order) < 2:
        return []
    left_out = len(findings.class_names) - len(order)
    figure = Figure(
        "shared-paths",
        "Share of path neurons that two images have in common",
        "A grid of classes by classes, similar classes side by side. The more neurons the paths of two images of the "
        "classes share, the darker is their cell.",
        [_draw_overlap(findings, order)],
        caption="Mean over pairs of different images and over blocks, in %; classes are ordered by average linkage."
        + (f" {left_out} more classes are not shown." if left_out else ""),
        keep_size=True,
    )
    return [Section("Which classes share paths?", [figure, class_table(findings)])]


def _draw_overlap(findings: Findings, order: Sequence[int]) -> Drawing:
    names = [findings.class_names[index] for index in order]
    overlap_CC = findings.overlap_CC[order][:, order].numpy()
    low, high = float(np.nanmin(overlap_CC)), float(np.nanmax(overlap_CC))
    shades_CC = (overlap_CC - low) / ((high - low) or 1.0)
    labels = [[f"{100 * value:.0f}" for value in row] for row in overlap_CC.tolist()]
    return draw_grid(shades_CC, labels, row_names=names, column_names=names)


def _neuron_sections(findings: Findings) -> list[Section]:
    galleries = [
        Gallery(f"Block {view.block}, neuron {view.neuron}: on the paths of {view.share:.0%}", view.pictures)
        for view in findings.neurons
    ]
    text = (
        "The images with the highest activation of the neuron, best first. The images are of all classes, not only of "
        "the classes with the neuron on their paths."
    )
    return [
        Section(
            "Which neurons are used most, and which images activate them?",
            [Prose(text), neuron_table(findings), Details("The images with the highest activation", galleries)],
        )
    ]


def _terminal(table: Table) -> TerminalTable:
    shown = TerminalTable(title=table.caption, header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns:
        shown.add_column(column.heading, justify="right" if column.is_number else "left")
    for place, row in enumerate(table.rows):
        if place in table.group_starts:
            shown.add_section()
        shown.add_row(*(f"{cell.text} {cell.note}" if isinstance(cell, Cell) else cell for cell in row))
    return shown


def _of(findings: Findings) -> str:
    return "at the class token" if findings.tokens == "class" else "at all tokens"


def _share_above(findings: Findings, kind: PathKind) -> float:
    """Return the share of images whose located path has a higher JAS than their path of another kind."""
    return float((findings.measures["jas"].jas > findings.measures[kind].jas).double().mean())


def _removal_against_random(findings: Findings) -> Mean:
    """Return the change of probability by removing the located path, minus that by removing a random path."""
    located, random = findings.measures["jas"], findings.measures["random"]
    return Mean.of(located.removed.probability - random.removed.probability)


def _percent(share: Tensor) -> str:
    return "–" if share.isnan() else f"{share:.1%}"
