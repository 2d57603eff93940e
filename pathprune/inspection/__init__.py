"""Inspection of neuron paths: their strength, their effects, the classes that share them, and their neurons."""

from typing import TYPE_CHECKING

from pathprune.lazy import import_on_use

if TYPE_CHECKING:
    from pathprune.inspection.classes import measure_overlap, order_classes
    from pathprune.inspection.interventions import Effects, measure_effects, scale_paths
    from pathprune.inspection.measures import PATH_KINDS, SCALING_FACTORS, PathKind, PathMeasure, PathMeasures
    from pathprune.inspection.neurons import TopImages, find_most_used, find_top_images
    from pathprune.inspection.random_paths import draw_random_paths
else:
    __getattr__ = import_on_use(__name__)

__all__ = [
    "PATH_KINDS",
    "SCALING_FACTORS",
    "Effects",
    "PathKind",
    "PathMeasure",
    "PathMeasures",
    "TopImages",
    "draw_random_paths",
    "find_most_used",
    "find_top_images",
    "measure_effects",
    "measure_overlap",
    "order_classes",
    "scale_paths",
]
