"""Page section on neuron paths: the neurons on most paths, of all images and by class, and similar classes."""

# K classes, L blocks, W neurons of all blocks, N images

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from numpy.typing import NDArray

from pathprune.inspection import order_classes
from pathprune.mining import ClassStats, PathSet
from pathprune.report.grid import draw_grid
from pathprune.report.page import Figure, Prose, Section
from pathprune.report.theme import ACCENT, FAINT, MUTED, figure_style, new_panel
from pathprune.report.wording import format_signed

_MAX_CLASSES = 40  # with more rows, a grid's labels are too small to read
_MAX_LABELLED_CLASSES = 16  # with more columns, numbers do not fit the cells of a class-by-class grid
_NUM_TOP = 5  # neurons of a block that the flow shows one by one
_BAR_WIDTH, _BAR_GAP = 0.16, 0.035  # in blocks; in shares of the images


def build_path_section(stats: ClassStats, paths: PathSet, *, tokens: str) -> Section:
    """Build the section on mined paths: their flow through the blocks, by class, and the classes that share neurons."""
    readout = "at the class token" if tokens == "class" else "at all tokens"
    return Section(
        "Neuron paths",
        [
            Prose(
                f"Paths of {len(paths):,} mined images, {readout}. A path has one neuron per block. The neurons are "
                "chosen block by block: each neuron, together with the neurons before it, contributes most to the "
                "prediction of the image's class (arXiv 2503.09046)."
            ),
            _build_flow_figure(paths),
            _build_class_path_figure(stats),
            _build_similarity_figure(stats),
        ],
    )


def _build_flow_figure(paths: PathSet) -> Figure:
    return Figure(
        "path-flow",
        "Flow of the paths through the blocks",
        f"Columns of bars, one column per block: the {_NUM_TOP} neurons on most paths, each as high as its share of "
        "the images. Bands connect neurons on the same paths.",
        [_draw_flow(paths.paths[:, :, 0].numpy())],
        caption=f"Blue bars: the {_NUM_TOP} neurons of each block on most paths, with index and share of the images. "
        "Grey bars: all other neurons. Bands: images whose paths connect two bars.",
        keep_size=True,
    )


@dataclass(frozen=True)
class Flow:
    """Most frequent path neurons of every block, and the place of every image's neuron among them.

    `neurons` are the neurons of each block, most frequent first. `places` int64 `[N, L]` are indices into `neurons`;
    the index after the last stands for all other neurons.
    """

    neurons: list[list[int]]
    places_NL: NDArray[np.int64]


def find_flow(chosen_NL: NDArray[np.int64], *, num_top: int = _NUM_TOP) -> Flow:
    """Find the `num_top` most frequent neurons of each block, given every image's neuron: `[N, L]`."""
    neurons, places = [], []
    for chosen_N in chosen_NL.T:
        values, counts = np.unique(chosen_N, return_counts=True)
        top = values[np.lexsort((values, -counts))][:num_top].tolist()
        neurons.append(top)
        place_of = {neuron: index for index, neuron in enumerate(top)}
        places.append([place_of.get(neuron, num_top) for neuron in chosen_N.tolist()])
    return Flow(neurons, np.array(places, dtype=np.int64).T)


@figure_style()
def _draw_flow(chosen_NL: NDArray[np.int64]) -> Drawing:
    flow = find_flow(chosen_NL)
    num_blocks = len(flow.neurons)
    figure = new_panel(max(3.5, 0.86 * num_blocks + 0.4), 3.9)
    axes = figure.subplots()
    bottoms = [_draw_bars(axes, flow, block) for block in range(num_blocks)]
    for block in range(num_blocks - 1):
        _draw_bands(axes, flow, block, bottoms)
    axes.set_xlim(-0.3, num_blocks - 0.4)
    axes.set_ylim(-_BAR_GAP, 1 + _BAR_GAP * (_NUM_TOP + 1))
    axes.set_xticks(range(num_blocks), [str(block) for block in range(num_blocks)])
    axes.set_xlabel("block")
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _draw_bars(axes: Axes, flow: Flow, block: int) -> list[float]:
    """Draw one block's bars from the top down, in place; return the lower edge of each bar."""
    counts = np.bincount(flow.places_NL[:, block], minlength=_NUM_TOP + 1)
    y, bottoms = 1.0 + _BAR_GAP * _NUM_TOP, []
    for place, share in enumerate((counts / len(flow.places_NL)).tolist()):
        y -= share
        bottoms.append(y)
        is_other = place == _NUM_TOP
        if share > 0:
            color = FAINT if is_other else ACCENT
            axes.add_patch(Rectangle((block - _BAR_WIDTH / 2, y), _BAR_WIDTH, share, facecolor=color, linewidth=0))
        if share >= 0.045 and not is_other:  # a lower bar has no room for a label
            index = flow.neurons[block][place]
            label = f"{index}\n{100 * share:.0f} %" if share >= 0.1 else f"{index}"
            x = block + _BAR_WIDTH / 2 + 0.03
            axes.text(x, y + share / 2, label, va="center", fontsize=7.5, linespacing=1.1)
        y -= _BAR_GAP
    return bottoms


def _draw_bands(axes: Axes, flow: Flow, block: int, bottoms: list[list[float]]) -> None:
    """Draw the bands from a block's bars to the next block's bars, in place; bands of a bar are stacked upwards."""
    left_heights, right_heights = [0.0] * (_NUM_TOP + 1), [0.0] * (_NUM_TOP + 1)
    ends, counts = np.unique(flow.places_NL[:, block : block + 2], axis=0, return_counts=True)
    for (left, right), count in zip(ends.tolist(), counts.tolist(), strict=True):
        share = count / len(flow.places_NL)
        y0, y1 = bottoms[block][left] + left_heights[left], bottoms[block + 1][right] + right_heights[right]
        left_heights[left] += share
        right_heights[right] += share
        x0, x1, middle = block + _BAR_WIDTH / 2, block + 1 - _BAR_WIDTH / 2, block + 0.5
        vertices = [
            *((x0, y0), (middle, y0), (middle, y1), (x1, y1)),
            *((x1, y1 + share), (middle, y1 + share), (middle, y0 + share), (x0, y0 + share), (x0, y0)),
        ]
        codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
        color, alpha = (MUTED, 0.12) if _NUM_TOP in (left, right) else (ACCENT, 0.3)
        axes.add_patch(PathPatch(Path(vertices, codes), facecolor=color, alpha=alpha, lw=0))


def _build_class_path_figure(stats: ClassStats) -> Figure:
    shown = [index for index in range(len(stats.class_names)) if stats.num_images[index] > 0][:_MAX_CLASSES]
    num_hidden = len(stats.class_names) - len(stats.empty_classes) - len(shown)
    note = f" The first {len(shown)} classes are shown; `mined/` has {num_hidden} more." if num_hidden else ""
    return Figure(
        "class-paths",
        "Most frequent path neuron by class and block",
        "A grid of classes and blocks. Each cell has the index of the neuron on most paths of the class; the shade is "
        "the share of these paths.",
        [_draw_class_paths(stats, shown)],
        caption="Number: index of the neuron on most paths of the class. Shade: share of the class's images whose path "
        f"has this neuron.{note}",
        keep_size=True,
    )


def _draw_class_paths(stats: ClassStats, shown: Sequence[int]) -> Drawing:
    tops = [means_KW[list(shown)].max(dim=1) for means_KW in stats.means("count")]
    shares_KL = np.stack([top.values.numpy() for top in tops], axis=1)
    neurons_KL = np.stack([top.indices.numpy() for top in tops], axis=1)
    return draw_grid(
        shares_KL,
        [[str(neuron) for neuron in row] for row in neurons_KL.tolist()],
        row_names=[stats.class_names[index] for index in shown],
        column_names=[str(block) for block in range(len(tops))],
        x_label="block",
    )


def _build_similarity_figure(stats: ClassStats) -> Figure:
    similarity_KK, classes = find_similar_classes(stats)
    return Figure(
        "class-similarity",
        "Classes that use the same neurons",
        "A grid of classes by classes, similar classes side by side. The shade is the similarity of two classes' "
        "attributions.",
        [_draw_similarity(similarity_KK, [stats.class_names[index] for index in classes])],
        caption="Cosine similarity of two classes' attributions over all neurons, after subtracting the mean over "
        "classes. Blue: similar classes. Red: opposite classes. Hierarchical clustering gives the order.",
        keep_size=True,
    )


def find_similar_classes(
    stats: ClassStats, *, max_classes: int = _MAX_CLASSES
) -> tuple[NDArray[np.float64], list[int]]:
    """Return the classes' similarity `[K, K]` in clustered order, and the indices of these classes.

    The similarity is the cosine of the classes' mass after subtracting the mean over classes. If more than
    `max_classes` classes have images, the result has the classes that are most similar to another class.
    """
    classes = (stats.num_images > 0).nonzero().flatten().tolist()
    mass_KW = np.concatenate([means_KW[classes].numpy() for means_KW in stats.means("mass")], axis=1)
    centred_KW = mass_KW - mass_KW.mean(axis=0)
    norm_K1 = np.linalg.norm(centred_KW, axis=1, keepdims=True)
    unit_KW = centred_KW / np.where(norm_K1 > 0, norm_K1, 1)
    similarity_KK = unit_KW @ unit_KW.T
    np.fill_diagonal(similarity_KK, 1.0)
    if len(classes) > max_classes:
        nearest_K = (similarity_KK - 2 * np.eye(len(classes))).max(axis=1)
        kept = np.sort(np.argsort(-nearest_K, kind="stable")[:max_classes])
        similarity_KK, classes = similarity_KK[np.ix_(kept, kept)], [classes[index] for index in kept]
    order = order_classes(torch.from_numpy(similarity_KK))
    return similarity_KK[np.ix_(order, order)], [classes[index] for index in order]


def _draw_similarity(similarity_KK: NDArray[np.float64], names: Sequence[str]) -> Drawing:
    off_diagonal_KK = similarity_KK - np.eye(len(similarity_KK))
    strongest = max(float(np.abs(off_diagonal_KK).max()), 1e-9)
    labels = [
        [
            "" if row == column or len(names) > _MAX_LABELLED_CLASSES else _format_similarity(value)
            for column, value in enumerate(line)
        ]
        for row, line in enumerate(similarity_KK.tolist())
    ]
    return draw_grid(off_diagonal_KK / strongest, labels, row_names=names, column_names=names)


def _format_similarity(value: float) -> str:
    return format_signed(value, digits=1).removeprefix("+")
