"""Neuron paths: location per image, records per split, statistics per class."""

from typing import TYPE_CHECKING

from pathprune.lazy import import_on_use

if TYPE_CHECKING:
    from pathprune.mining.accuracy import PathAccuracy, choose_nodes, compare_paths
    from pathprune.mining.choices import METHODS, RULES, STATISTICS, TOKENS, Method, Rule, Statistic, Tokens
    from pathprune.mining.class_stats import ClassStats
    from pathprune.mining.integral import resolve_nodes
    from pathprune.mining.locate import locate_paths, score_paths
    from pathprune.mining.mined_paths import MinedPaths, split_layers
    from pathprune.mining.objective_config import ObjectiveConfig
    from pathprune.mining.objectives import (
        ClassProbability,
        CleanCosine,
        LabelProbability,
        Objective,
        ObjectiveFunction,
        resolve_objective,
    )
    from pathprune.mining.path_set import PathSet, save_paths
    from pathprune.mining.sampling import Sampling, sample_for_mining
    from pathprune.mining.shards import ShardFolder
    from pathprune.mining.split import mine_split
    from pathprune.mining.zero_shot import ZeroShot, ZeroShotClassifier
else:
    __getattr__ = import_on_use(__name__)

__all__ = [
    "METHODS",
    "RULES",
    "STATISTICS",
    "TOKENS",
    "ClassProbability",
    "ClassStats",
    "CleanCosine",
    "LabelProbability",
    "Method",
    "MinedPaths",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveFunction",
    "PathAccuracy",
    "PathSet",
    "Rule",
    "Sampling",
    "ShardFolder",
    "Statistic",
    "Tokens",
    "ZeroShot",
    "ZeroShotClassifier",
    "choose_nodes",
    "compare_paths",
    "locate_paths",
    "mine_split",
    "resolve_nodes",
    "resolve_objective",
    "sample_for_mining",
    "save_paths",
    "score_paths",
    "split_layers",
]
