"""Scores of neurons, from neuron paths, calibration statistics or torch-pruning's importances."""

from pathprune.scoring.attention_statistics import AttentionStatistics, HeadMoments, collect_attention_statistics
from pathprune.scoring.criteria import (
    Criterion,
    ScoringContext,
    get_criterion,
    list_criteria,
    parse_criterion,
    register,
    score,
)
from pathprune.scoring.moments import Moments
from pathprune.scoring.path_criteria import PathClassCriterion, PathCriterion
from pathprune.scoring.path_surgeon import PathSurgeon, measure_path_sensitivity
from pathprune.scoring.plain_criteria import Random, Variance, VarianceWeighted
from pathprune.scoring.scores import Scores, validate_scores
from pathprune.scoring.sensitivity import OutputSensitivity, measure_output_sensitivity
from pathprune.scoring.statistics import ActivationStatistics, collect_statistics
from pathprune.scoring.surgeon import BrainSurgeon
from pathprune.scoring.torch_pruning_bridge import (
    Fpgm,
    Hessian,
    Lamp,
    MagnitudeL1,
    MagnitudeL2,
    ScoresImportance,
    Taylor,
    score_gradient_importance,
    score_importance,
)
from pathprune.scoring.yardsticks import Energy, Snip, Wanda

__all__ = [
    "ActivationStatistics",
    "AttentionStatistics",
    "BrainSurgeon",
    "Criterion",
    "Energy",
    "Fpgm",
    "HeadMoments",
    "Hessian",
    "Lamp",
    "MagnitudeL1",
    "MagnitudeL2",
    "Moments",
    "OutputSensitivity",
    "PathClassCriterion",
    "PathCriterion",
    "PathSurgeon",
    "Random",
    "Scores",
    "ScoresImportance",
    "ScoringContext",
    "Snip",
    "Taylor",
    "Variance",
    "VarianceWeighted",
    "Wanda",
    "collect_attention_statistics",
    "collect_statistics",
    "get_criterion",
    "list_criteria",
    "measure_output_sensitivity",
    "measure_path_sensitivity",
    "parse_criterion",
    "register",
    "score",
    "score_gradient_importance",
    "score_importance",
    "validate_scores",
]
