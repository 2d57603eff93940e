"""Scores of neurons, from neuron paths, calibration statistics or torch-pruning's importances."""

from typing import TYPE_CHECKING

from pathprune.lazy import import_on_use

if TYPE_CHECKING:
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
    from pathprune.scoring.path_surgeon import measure_path_sensitivity
    from pathprune.scoring.plain_criteria import Random, Variance, VarianceWeighted
    from pathprune.scoring.scores import Scores, validate_scores
    from pathprune.scoring.sensitivity import measure_output_sensitivity
    from pathprune.scoring.statistics import ActivationStatistics, collect_statistics
    from pathprune.scoring.surgeon_criteria import BrainSurgeon, OutputSensitivity, PathSurgeon
    from pathprune.scoring.torch_pruning_bridge import ScoresImportance, score_gradient_importance, score_importance
    from pathprune.scoring.torch_pruning_criteria import Fpgm, Hessian, Lamp, MagnitudeL1, MagnitudeL2, Taylor
    from pathprune.scoring.yardsticks import Energy, Snip, Wanda
else:
    __getattr__ = import_on_use(__name__)

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
