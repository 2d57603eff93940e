"""How accurate mined paths are: compared, on a sample of images, with those of a converged quadrature.

The converged one has 16 Gauss–Legendre nodes and the model's own precision.
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

from pathprune.mining.paths import MinedPaths, per_layer

CONVERGED_NODES = 16
CANDIDATES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # numbers of nodes that `fewest_nodes` tries
GOAL, MIXED_GOAL = 0.995, 0.98  # share of path neurons, in the model's own precision and in mixed precision


@dataclass(frozen=True)
class PathAccuracy:
    """Agreement of the paths of a sample with converged ones, and the mean correlation of their layers' scores."""

    nodes: int
    goal: float  # share of path neurons that should agree
    num_images: int
    num_neurons: int  # on the paths of these images
    num_agreeing: int  # of those, on the converged paths too
    correlation: float  # Pearson's, over a layer's neurons; mean over images and layers
    rank_correlation: float  # Spearman's

    @property
    def agreement(self) -> float:
        return self.num_agreeing / self.num_neurons

    @property
    def reached(self) -> bool:
        """Whether the goal is reached, to within the one neuron that the sample resolves."""
        return self.num_agreeing >= math.floor(self.goal * self.num_neurons)

    def __str__(self) -> str:
        return (
            f"{self.num_agreeing} of {self.num_neurons} path neurons as with {CONVERGED_NODES} nodes "
            f"({self.agreement:.1%}, goal {self.goal:.1%}), scores correlate {self.correlation:.4f} "
            f"(ranks {self.rank_correlation:.4f}); {self.num_images} images, nodes: {self.nodes}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain data, the derived shares included."""
        return {**asdict(self), "agreement": self.agreement, "reached": self.reached}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> PathAccuracy:
        """What `to_dict` gave, read back."""
        return cls(**{name: content[name] for name in cls.__dataclass_fields__})


def path_accuracy(
    mined: Sequence[MinedPaths], converged: Sequence[MinedPaths], *, nodes: int, goal: float
) -> PathAccuracy:
    """Compare batches mined with `nodes` with the same batches mined by a converged quadrature."""
    agreeing = [_num_agreeing(ours, theirs) for ours, theirs in zip(mined, converged, strict=True)]
    linear, ranked = [], []
    for ours, theirs in zip(mined, converged, strict=True):
        for our_BW, their_BW in zip(per_layer(ours.scores), per_layer(theirs.scores), strict=True):
            pair = our_BW.cpu().double().numpy(), their_BW.cpu().double().numpy()
            linear.append(_correlation(*pair))
            ranked.append(_correlation(*(rankdata(scores_BW, axis=1) for scores_BW in pair)))
    return PathAccuracy(
        nodes=nodes,
        goal=goal,
        num_images=sum(len(batch.paths) for batch in mined),
        num_neurons=sum(batch.paths.numel() for batch in mined),
        num_agreeing=sum(agreeing),
        correlation=float(np.nanmean(np.concatenate(linear))),
        rank_correlation=float(np.nanmean(np.concatenate(ranked))),
    )


def fewest_nodes(
    mine: Callable[[int], Iterable[MinedPaths]], converged: Sequence[MinedPaths], *, goal: float
) -> PathAccuracy:
    """The accuracy of the fewest nodes, a number that `mine` takes, that reach the goal; of the best where none do."""
    tried = []
    for nodes in CANDIDATES:
        tried.append(path_accuracy(list(mine(nodes)), converged, nodes=nodes, goal=goal))
        if tried[-1].reached:
            return tried[-1]
    return max(tried, key=lambda accuracy: accuracy.num_agreeing)


def _num_agreeing(mined: MinedPaths, converged: MinedPaths) -> int:
    """How many of the neurons on the paths are on the converged paths of the same image and layer too."""
    same = mined.paths[..., :, None] == converged.paths[..., None, :].to(mined.paths.device)
    return int(torch.count_nonzero(same.any(-1)))


def _correlation(first_BW: NDArray[np.float64], second_BW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's correlation of every image's layer, `[B]`; NaN where all scores of one are the same."""
    first, second = (x - x.mean(1, keepdims=True) for x in (first_BW, second_BW))
    scale = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    with np.errstate(invalid="ignore"):
        return np.asarray((first * second).sum(1) / scale)
