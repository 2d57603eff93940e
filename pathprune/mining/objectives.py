"""Objectives of attribution: one number per image, computed from the model's output.

An objective names the classes that an output `[B, K]` (logits or an embedding) distinguishes, and returns the function
of the output to differentiate.
"""

# B images, K numbers of an output, C classes

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.nn.functional import cosine_similarity

ObjectiveFunction = Callable[[Tensor], Tensor]
"""The number to attribute, for each image: output `[B, K]` -> `[B]`."""


@runtime_checkable
class Objective(Protocol):
    """Number that `locate_paths` attributes. Outputs have at least float32 precision."""

    def class_logits(self, output_BK: Tensor) -> Tensor | None:
        """Return the logits `[B, C]` of the classes that targets and predictions refer to; None without classes."""

    def bind(self, clean_BK: Tensor, targets_B: Tensor) -> ObjectiveFunction:
        """Return the function to attribute, for images with these clean outputs and targets (-1 without classes).

        Gradients must flow through the function. It is only called with other outputs of the same images.
        """


@dataclass(frozen=True)
class ClassProbability:
    """Softmax probability of the target class, as in the paper. For classifiers."""

    def class_logits(self, output_BK: Tensor) -> Tensor:
        return output_BK

    def bind(self, clean_BK: Tensor, targets_B: Tensor) -> ObjectiveFunction:
        return lambda output_BK: gather_targets(output_BK.softmax(-1), targets_B)


@dataclass(frozen=True)
class LabelProbability:
    """Sigmoid of the target class's own logit. For multi-label classifiers, where classes do not compete."""

    def class_logits(self, output_BK: Tensor) -> Tensor:
        return output_BK

    def bind(self, clean_BK: Tensor, targets_B: Tensor) -> ObjectiveFunction:
        return lambda output_BK: gather_targets(output_BK, targets_B).sigmoid()


@dataclass(frozen=True)
class CleanCosine:
    """Cosine similarity to the image's own clean embedding. For towers without classes."""

    def class_logits(self, output_BK: Tensor) -> None:
        return None

    def bind(self, clean_BK: Tensor, targets_B: Tensor) -> ObjectiveFunction:
        return lambda output_BK: cosine_similarity(output_BK, clean_BK, dim=-1)


@dataclass(frozen=True)
class CustomObjective:
    """Function of the output given by the user. `has_classes` says that the output is logits."""

    function: ObjectiveFunction
    has_classes: bool

    def class_logits(self, output_BK: Tensor) -> Tensor | None:
        return output_BK if self.has_classes else None

    def bind(self, clean_BK: Tensor, targets_B: Tensor) -> ObjectiveFunction:
        return self.function


def resolve_objective(num_classes: int, objective: Objective | ObjectiveFunction | None = None) -> Objective:
    """Return `objective` as an `Objective`, or the model's default for None.

    `num_classes` is the number of classes of the model's own classifier. The default is `ClassProbability`, and
    `CleanCosine` without a classifier. Raises `ValueError` for an objective that needs a classifier that is missing.
    """
    if objective is None:
        return ClassProbability() if num_classes else CleanCosine()
    if isinstance(objective, ClassProbability | LabelProbability) and num_classes == 0:
        raise ValueError(
            "the objective needs a classifier but the model has none; choose the objective cosine, or zero-shot with a "
            "head of text embeddings"
        )
    return objective if isinstance(objective, Objective) else CustomObjective(objective, has_classes=num_classes > 0)


def gather_targets(values_BC: Tensor, targets_B: Tensor) -> Tensor:
    """Return each image's value at its target class: `[B, C]`, int64 `[B]` -> `[B]`."""
    return values_BC.gather(1, targets_B[:, None]).squeeze(1)
