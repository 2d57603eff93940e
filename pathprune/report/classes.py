"""What pruning does to single classes, and which neurons and classes go together on the mined paths.

# K classes, L blocks, W neurons of a block, N images
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from pathprune.evaluation import Evaluation
from pathprune.evaluation.bootstrap import mean_interval
from pathprune.mining import ClassStats, PathSet
from pathprune.report.entries import Results
from pathprune.report.grid import shaded_grid
from pathprune.report.page import Cell, Column, Details, Figure, Prose, Section, Table, Tone
from pathprune.report.theme import ACCENT, BAD, FAINT, MUTED, SERIES, panel, styled
from pathprune.report.verdict import featured
from pathprune.report.wording import budget_words, lowered, points, points_interval

_MOST_CLASSES = 40  # of a picture; beyond, labels cannot be read
_WORST_CLASSES = 15
_NODES = 5  # neurons of a block that a flow tells apart


def class_section(results: Results) -> Section:
    """Top-1 of single classes, dense and pruned, worst change first."""
    entry = featured(results)
    dense, pruned = results.dense_evaluation, entry.evaluations
    changes = sorted((class_change(index, dense, pruned), index) for index in np.unique(dense.labels).tolist())
    shown = changes[:_WORST_CLASSES]
    what = f"`{entry.criterion}` with `{entry.compensation}`, {lowered(budget_words(entry.budget))}"
    table = Table(
        f"Top-1 by class, %: {what}",
        [Column("class", is_number=False), *map(Column, ("images", "dense", "pruned", "change in points"))],
        [_class_row(results.class_names[index], index, dense, pruned) for _, index in changes],
    )
    worst, best_off = changes[0], changes[-1]
    return Section(
        "Class by class",
        [
            Prose(
                f"{what[0].upper()}{what[1:]}: `{results.class_names[worst[1]]}` changes most, by {points(worst[0])} "
                f"points; at the other end, `{results.class_names[best_off[1]]}` by {points(best_off[0])}."
            ),
            Figure(
                "classes",
                "Top-1 of each class, dense and pruned, worst change first",
                "A line for each class from its dense top-1 to its pruned top-1; the numbers are in the table below.",
                [_class_panel([(results.class_names[i], *_accuracies(i, dense, pruned)) for _, i in shown])],
                caption=f"The {len(shown)} of {len(changes)} classes that lose most."
                if len(shown) < len(changes)
                else "",
            ),
            Details("All classes in numbers", [table]),
        ],
    )


def class_change(index: int, dense: Evaluation, pruned: Sequence[Evaluation]) -> float:
    """Pruned minus dense top-1 of one class, mean over seeds."""
    before, after = _accuracies(index, dense, pruned)
    return after - before


def _accuracies(index: int, dense: Evaluation, pruned: Sequence[Evaluation]) -> tuple[float, float]:
    own_N = dense.labels == index
    after = float(np.mean([evaluation.correct[own_N] for evaluation in pruned]))
    return float(dense.correct[own_N].mean()), after


def _class_row(name: str, index: int, dense: Evaluation, pruned: Sequence[Evaluation]) -> list[Cell | str]:
    before, after = _accuracies(index, dense, pruned)
    own_N = dense.labels == index
    change_N = np.mean([evaluation.correct[own_N] for evaluation in pruned], axis=0) - dense.correct[own_N]
    low, high = mean_interval(change_N)
    tone: Tone = "bad" if high < 0 else "good" if low > 0 else ""
    return [
        name,
        f"{own_N.sum():,}",
        f"{100 * before:.1f}",
        f"{100 * after:.1f}",
        Cell(points(after - before), points_interval((low, high)), tone=tone),
    ]


@styled()
def _class_panel(classes: Sequence[tuple[str, float, float]]) -> Drawing:
    figure = panel(3.5, 1.2 + 0.24 * len(classes))
    axes = figure.subplots()
    for place, (_, before, after) in enumerate(reversed(classes)):
        axes.plot([100 * before, 100 * after], [place, place], color=BAD if after < before else SERIES[2], linewidth=2)
    places = range(len(classes))
    axes.plot([100 * c[1] for c in reversed(classes)], places, "o", color=MUTED, label="dense", markersize=6)
    axes.plot([100 * c[2] for c in reversed(classes)], places, "D", color=ACCENT, label="pruned")
    axes.set_yticks(places, [c[0] for c in reversed(classes)])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("top-1, %")
    axes.set_ylim(-0.6, len(classes) - 0.4)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def path_section(stats: ClassStats, paths: PathSet, *, tokens: str) -> Section:
    """Which neurons the mined paths go through, for all images and class by class, and which classes are alike."""
    of = "the class token" if tokens == "class" else "all tokens"
    return Section(
        "Neuron paths",
        [
            Prose(
                f"Each of {len(paths):,} mined images has a path: in every block the neuron that, together with those "
                f"chosen before it, carries most of the evidence for its class ({of}; arXiv 2503.09046)."
            ),
            flow_figure(paths),
            class_path_figure(stats),
            similarity_figure(stats),
        ],
    )


def flow_figure(paths: PathSet) -> Figure:
    """How the paths of all images run from block to block."""
    return Figure(
        "path-flow",
        "How the paths run",
        f"For each block, from left to right, the {_NODES} neurons that most paths go through, as bars as high as "
        "their share of the images, with bands between neurons that lie on the same paths.",
        [_flow_panel(paths.paths[:, :, 0].numpy())],
        caption=f"The {_NODES} neurons of each block that most paths go through (numbers: the neuron's index and its "
        "share of the images; grey: all other neurons), and the images that go from one to the next.",
        keep_size=True,
    )


def flow(chosen_NL: NDArray[np.int64], nodes: int = _NODES) -> tuple[list[list[int]], NDArray[np.int64]]:
    """The most frequent neurons of each block, most first, and each image's place among them `[N, L]`; last: other."""
    tops, places = [], []
    for chosen_N in chosen_NL.T:
        values, counts = np.unique(chosen_N, return_counts=True)
        top = values[np.lexsort((values, -counts))][:nodes].tolist()
        tops.append(top)
        place = {neuron: index for index, neuron in enumerate(top)}
        places.append([place.get(neuron, nodes) for neuron in chosen_N.tolist()])
    return tops, np.array(places, dtype=np.int64).T


@styled()
def _flow_panel(chosen_NL: NDArray[np.int64]) -> Drawing:
    tops, places_NL = flow(chosen_NL)
    num_images, num_blocks = chosen_NL.shape
    figure = panel(max(3.5, 0.86 * num_blocks + 0.4), 3.9)
    axes = figure.subplots()
    gap, bar = 0.035, 0.16
    bottoms = []  # [block][place], from the top down
    for block, top in enumerate(tops):
        shares = np.bincount(places_NL[:, block], minlength=_NODES + 1) / num_images
        y, bottom = 1.0 + gap * _NODES, []
        for place, share in enumerate(shares.tolist()):
            y -= share
            bottom.append(y)
            if share > 0:
                is_other = place == _NODES
                color = FAINT if is_other else ACCENT
                axes.add_patch(Rectangle((block - bar / 2, y), bar, share, facecolor=color, linewidth=0))
                if share >= 0.045 and not is_other:
                    label = f"{top[place]}\n{100 * share:.0f} %" if share >= 0.1 else f"{top[place]}"
                    axes.text(block + bar / 2 + 0.03, y + share / 2, label, va="center", fontsize=7.5, linespacing=1.1)
            y -= gap
        bottoms.append(bottom)
    for block in range(num_blocks - 1):
        _links(axes, block, places_NL[:, block : block + 2], bottoms, num_images, bar)
    axes.set_xlim(-0.3, num_blocks - 0.4)
    axes.set_ylim(-gap, 1 + gap * (_NODES + 1))
    axes.set_xticks(range(num_blocks), [str(block) for block in range(num_blocks)])
    axes.set_xlabel("block")
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _links(
    axes: Axes, block: int, pair_N2: NDArray[np.int64], bottoms: list[list[float]], num_images: int, bar: float
) -> None:
    """Draw the bands from one block's neurons to the next one's; images are stacked in the order of the other end."""
    used_left, used_right = [0.0] * (_NODES + 1), [0.0] * (_NODES + 1)
    ends, counts = np.unique(pair_N2, axis=0, return_counts=True)
    for (left, right), count in zip(ends.tolist(), counts.tolist(), strict=True):
        share = count / num_images
        y0, y1 = bottoms[block][left] + used_left[left], bottoms[block + 1][right] + used_right[right]
        used_left[left] += share
        used_right[right] += share
        x0, x1, middle = block + bar / 2, block + 1 - bar / 2, block + 0.5
        vertices = [
            *((x0, y0), (middle, y0), (middle, y1), (x1, y1)),
            *((x1, y1 + share), (middle, y1 + share), (middle, y0 + share), (x0, y0 + share), (x0, y0)),
        ]
        codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
        is_other = _NODES in (left, right)
        axes.add_patch(
            PathPatch(
                Path(vertices, codes), facecolor=MUTED if is_other else ACCENT, alpha=0.12 if is_other else 0.3, lw=0
            )
        )


def class_path_figure(stats: ClassStats) -> Figure:
    """For every class and block, the neuron on most of the class's paths."""
    chosen = [index for index in range(len(stats.class_names)) if stats.num_images[index] > 0][:_MOST_CLASSES]
    rest = len(stats.class_names) - len(stats.empty_classes) - len(chosen)
    more = f" The first {len(chosen)} classes; {rest} more are in `mined/`." if rest else ""
    return Figure(
        "class-paths",
        "The neuron on most paths, class by class",
        "A grid of classes and blocks; each cell has the index of the neuron that most paths of the class go "
        "through, shaded by the share of these paths.",
        [_class_path_panel(stats, chosen)],
        caption=f"Number: the neuron's index; shade: the share of the class's images whose path goes through it.{more}",
        keep_size=True,
    )


@styled()
def _class_path_panel(stats: ClassStats, chosen: Sequence[int]) -> Drawing:
    tops = [means_KW[list(chosen)].max(dim=1) for means_KW in stats.means("count")]
    shares_KL = np.stack([top.values.numpy() for top in tops], axis=1)
    neurons_KL = np.stack([top.indices.numpy() for top in tops], axis=1)
    labels = [[str(neuron) for neuron in row] for row in neurons_KL.tolist()]
    return shaded_grid(
        shares_KL,
        labels,
        row_names=[stats.class_names[index] for index in chosen],
        column_names=[str(block) for block in range(len(tops))],
        x_label="block",
    )


def similarity_figure(stats: ClassStats) -> Figure:
    """Which classes use the same neurons: correlation of their path statistics, clustered."""
    similarity_KK, classes = class_similarity(stats)
    names = [stats.class_names[index] for index in classes]
    return Figure(
        "class-similarity",
        "Classes that share neurons",
        "A grid of classes by classes, ordered so that similar ones are neighbours, shaded by how alike their "
        "neurons are.",
        [_similarity_panel(similarity_KK, names)],
        caption="Correlation of the classes' attribution over all neurons after taking away what all classes have in "
        "common; blue: alike, red: opposite. Ordered by clustering.",
        keep_size=True,
    )


def class_similarity(stats: ClassStats, *, at_most: int = _MOST_CLASSES) -> tuple[NDArray[np.float64], list[int]]:
    """Cosine between the classes' mass less the mean over classes: `[K, K]` in clustered order, and the classes.

    Where there are more than `at_most` classes, those that are most like another one.
    """
    seen = (stats.num_images > 0).nonzero().flatten().tolist()
    mass_KW = np.concatenate([means_KW[seen].numpy() for means_KW in stats.means("mass")], axis=1)
    own_KW = mass_KW - mass_KW.mean(axis=0)
    norm_K1 = np.linalg.norm(own_KW, axis=1, keepdims=True)
    unit_KW = own_KW / np.where(norm_K1 > 0, norm_K1, 1)
    similarity_KK = unit_KW @ unit_KW.T
    np.fill_diagonal(similarity_KK, 1.0)
    if len(seen) > at_most:
        nearest_K = (similarity_KK - 2 * np.eye(len(seen))).max(axis=1)
        kept = np.sort(np.argsort(-nearest_K, kind="stable")[:at_most])
        similarity_KK, seen = similarity_KK[np.ix_(kept, kept)], [seen[index] for index in kept]
    if len(seen) > 2:
        distance = squareform(np.clip(1 - similarity_KK, 0, None), checks=False)
        order = leaves_list(linkage(distance, method="average", optimal_ordering=True))
        similarity_KK, seen = similarity_KK[np.ix_(order, order)], [seen[index] for index in order]
    return similarity_KK, seen


@styled()
def _similarity_panel(similarity_KK: NDArray[np.float64], names: Sequence[str]) -> Drawing:
    off_KK = similarity_KK - np.eye(len(similarity_KK))
    strongest = max(float(np.abs(off_KK).max()), 1e-9)
    labels = [
        [
            "" if row == column or len(names) > 16 else f"{value:.1f}".replace("-", "−")
            for column, value in enumerate(line)
        ]
        for row, line in enumerate(similarity_KK.tolist())
    ]
    return shaded_grid(off_KK / strongest, labels, row_names=names, column_names=names)
