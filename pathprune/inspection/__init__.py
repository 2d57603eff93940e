"""What neuron paths say of a model: how strong they are, what they do, who shares them, and what they look for."""

from pathprune.inspection.classes import class_order, shared_neurons
from pathprune.inspection.interventions import Effects, effects_of_scaling, scaled_paths
from pathprune.inspection.neurons import Exciting, most_exciting, most_used
from pathprune.inspection.strength import random_paths

__all__ = [
    "Effects",
    "Exciting",
    "class_order",
    "effects_of_scaling",
    "most_exciting",
    "most_used",
    "random_paths",
    "scaled_paths",
    "shared_neurons",
]
