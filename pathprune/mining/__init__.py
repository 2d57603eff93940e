"""Neuron paths: located per image, recorded per split, summed per class."""

from pathprune.mining.attribution import Objective
from pathprune.mining.locate import METHODS, TOKENS, locate_paths
from pathprune.mining.paths import KINDS, ClassStats, MinedPaths, PathSet, per_layer
from pathprune.mining.quadrature import RULES

__all__ = [
    "KINDS",
    "METHODS",
    "RULES",
    "TOKENS",
    "ClassStats",
    "MinedPaths",
    "Objective",
    "PathSet",
    "locate_paths",
    "per_layer",
]
