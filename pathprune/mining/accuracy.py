"""Accuracy of mined paths: agreement, on a sample of images, with the paths of the converged integral.

The reference is 16 Gauss–Legendre nodes in the model's own precision.
"""

# B images, L layers, k neurons chosen in a layer, W neurons of a layer

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from pathprune.mining.mined_paths import MinedPaths, split_layers

CONVERGED_NODES = 16
CANDIDATE_NODES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
GOAL, MIXED_GOAL = 0.995, 0.98  # share of path neurons, in the model's own precision and in mixed precision


@dataclass(frozen=True)
class PathAccuracy:
    """Agreement of a sample's paths with converged paths, and the mean correlation of the layers' scores."""

    nodes: int
    goal: float  # share of path neurons that should agree
    num_images: int
    num_neurons: int  # on the paths of these images
    num_agreeing: int  # neurons that are on the converged path of the same image too
    correlation: float  # Pearson's, over the neurons of a layer; mean over images and layers
    rank_correlation: float  # Spearman's, likewise

    @property
    def agreement(self) -> float:
        """The share of path neurons that agree."""
        return self.num_agreeing / self.num_neurons

    @property
    def meets_goal(self) -> bool:
        """True if the agreement reaches the goal, up to the one neuron that the sample can resolve."""
        return self.num_agreeing >= math.floor(self.goal * self.num_neurons)

    def __str__(self) -> str:
        return (
            f"{self.num_agreeing} of {self.num_neurons} path neurons as with {CONVERGED_NODES} nodes "
            f"({self.agreement:.1%}, goal {self.goal:.1%}), scores correlate {self.correlation:.4f} "
            f"(ranks {self.rank_correlation:.4f}); {self.num_images} images, nodes: {self.nodes}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: the fields, `agreement` and `reached` (whether the goal is met)."""
        return {**asdict(self), "agreement": self.agreement, "reached": self.meets_goal}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> PathAccuracy:
        """Build an accuracy from the result of `to_dict`."""
        return cls(**{name: content[name] for name in cls.__dataclass_fields__})


def compare_paths(
    mined: Sequence[MinedPaths], converged: Sequence[MinedPaths], *, nodes: int, goal: float
) -> PathAccuracy:
    """Compare batches mined with `nodes` to the same batches mined with a converged quadrature."""
    num_agreeing = 0
    linear, ranked = [], []
    for batch, reference in zip(mined, converged, strict=True):
        num_agreeing += _count_agreeing(batch, reference)
        layers = zip(split_layers(batch.scores), split_layers(reference.scores), strict=True)
        for scores_BW, reference_BW in layers:
            pair = scores_BW.cpu().double().numpy(), reference_BW.cpu().double().numpy()
            linear.append(_correlate(*pair))
            ranked.append(_correlate(*(rankdata(x_BW, axis=1) for x_BW in pair)))
    return PathAccuracy(
        nodes=nodes,
        goal=goal,
        num_images=sum(len(batch.paths) for batch in mined),
        num_neurons=sum(batch.paths.numel() for batch in mined),
        num_agreeing=num_agreeing,
        correlation=float(np.nanmean(np.concatenate(linear))),
        rank_correlation=float(np.nanmean(np.concatenate(ranked))),
    )


def choose_nodes(
    mine: Callable[[int], Iterable[MinedPaths]], converged: Sequence[MinedPaths], *, goal: float
) -> PathAccuracy:
    """Return the accuracy of the fewest `CANDIDATE_NODES` that meet the goal, or of the best if none does.

    `mine` maps a number of nodes to the mined batches.
    """
    accuracies: list[PathAccuracy] = []
    for nodes in CANDIDATE_NODES:
        accuracies.append(compare_paths(list(mine(nodes)), converged, nodes=nodes, goal=goal))
        if accuracies[-1].meets_goal:
            return accuracies[-1]
    return max(accuracies, key=lambda accuracy: accuracy.num_agreeing)


def _count_agreeing(mined: MinedPaths, converged: MinedPaths) -> int:
    """Count the path neurons that are on the converged path of the same image and layer, at any rank."""
    is_same_BLkk = mined.paths[..., :, None] == converged.paths[..., None, :].to(mined.paths.device)
    return int(torch.count_nonzero(is_same_BLkk.any(-1)))


def _correlate(first_BW: NDArray[np.float64], second_BW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Pearson's correlation for each image, `[B]`; NaN if all scores of a row are equal."""
    first, second = (x_BW - x_BW.mean(1, keepdims=True) for x_BW in (first_BW, second_BW))
    scale_B = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    with np.errstate(invalid="ignore"):
        return np.asarray((first * second).sum(1) / scale_B)
