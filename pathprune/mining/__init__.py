"""Neuron paths: located per image, recorded per split, summed per class."""

from pathprune.mining.locate import METHODS, TOKENS, locate_paths
from pathprune.mining.objectives import (
    ClassProbability,
    CleanCosine,
    LabelProbability,
    Objective,
    ObjectiveConfig,
    ZeroShot,
    default_objective,
)
from pathprune.mining.paths import KINDS, ClassStats, MinedPaths, PathSet, per_layer, save_paths
from pathprune.mining.quadrature import RULES
from pathprune.mining.shards import ShardFolder
from pathprune.mining.split import mine_split

__all__ = [
    "KINDS",
    "METHODS",
    "RULES",
    "TOKENS",
    "ClassProbability",
    "ClassStats",
    "CleanCosine",
    "LabelProbability",
    "MinedPaths",
    "Objective",
    "ObjectiveConfig",
    "PathSet",
    "ShardFolder",
    "ZeroShot",
    "default_objective",
    "locate_paths",
    "mine_split",
    "per_layer",
    "save_paths",
]
