"""Neuron paths: located per image, recorded per split, summed per class."""

from pathprune.mining.accuracy import PathAccuracy, fewest_nodes, path_accuracy
from pathprune.mining.class_stats import KINDS, ClassStats
from pathprune.mining.locate import METHODS, TOKENS, locate_paths, path_scores
from pathprune.mining.objectives import (
    ClassProbability,
    CleanCosine,
    LabelProbability,
    Objective,
    ObjectiveConfig,
    ZeroShot,
    ZeroShotClassifier,
    objective_for,
)
from pathprune.mining.paths import MinedPaths, PathSet, per_layer, save_paths
from pathprune.mining.quadrature import RULES, nodes_for
from pathprune.mining.sampling import Sampling, sample_for_mining
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
    "PathAccuracy",
    "PathSet",
    "Sampling",
    "ShardFolder",
    "ZeroShot",
    "ZeroShotClassifier",
    "fewest_nodes",
    "locate_paths",
    "mine_split",
    "nodes_for",
    "objective_for",
    "path_accuracy",
    "path_scores",
    "per_layer",
    "sample_for_mining",
    "save_paths",
]
