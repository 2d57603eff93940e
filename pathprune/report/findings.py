"""Findings of an inspection: measured paths, overlap of classes, and most used neurons."""

# C classes, N images

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pathprune.evaluation.bootstrap import Interval, excludes_zero, mean_interval
from pathprune.inspection import PathKind, PathMeasures
from pathprune.report.page import Picture


@dataclass(frozen=True)
class Mean:
    """Mean over images with its 95 % bootstrap interval."""

    value: float
    ci: Interval

    @classmethod
    def of(cls, values_N: Tensor) -> Mean:
        """Return the mean of one value per image."""
        return cls(float(values_N.mean()), mean_interval(values_N.numpy()))

    @property
    def excludes_zero(self) -> bool:
        """True if the interval excludes 0."""
        return excludes_zero(self.ci)


@dataclass(frozen=True)
class NeuronView:
    """Neuron that many paths use, with the classes that use it most and the images that activate it most."""

    block: int
    neuron: int
    share: float  # of the images with the neuron on their path
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
        """Number of measured images."""
        return self.measures.num_images

    @property
    def removal_effect(self) -> Mean:
        """Change in probability when the located path is removed, minus the change for a random path."""
        located, random = self.measures["jas"], self.measures["random"]
        return Mean.of(located.removed.probability - random.removed.probability)

    def share_above(self, kind: PathKind) -> float:
        """Return the share of images whose located path has a higher JAS than their path of another kind."""
        return float((self.measures["jas"].jas > self.measures[kind].jas).double().mean())
