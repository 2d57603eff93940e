"""Compensations: changes of the kept weights that make up for the removed neurons.

A compensation is a frozen config, registered by name, like a criterion. Its call changes the pruned model in place.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pathprune.scoring.registry import RegisteredConfig, Registry

if TYPE_CHECKING:  # a recipe names compensations and must load without torch
    from pathprune.models.seam import AdaptedModel
    from pathprune.pruning.attention import NarrowedHeads
    from pathprune.pruning.plan import PrunePlan
    from pathprune.scoring.batches import Batches
    from pathprune.scoring.statistics import ActivationStatistics


@dataclass(frozen=True)
class CompensationContext:
    """Everything that a compensation may use; inputs that a compensation does not need may be left out.

    - dense: the model before pruning.
    - plan: the plan that led from the dense to the pruned model.
    - statistics: activation statistics of the dense model.
    - narrowed: heads and bases of the attention that the plan narrowed, by site name.
    - batches: re-iterable calibration images `(images [B, C, H, W], labels [B])`.
    - seed: seed of all random choices.
    """

    dense: AdaptedModel
    plan: PrunePlan
    statistics: ActivationStatistics | None = None
    batches: Batches = ()
    narrowed: Mapping[str, NarrowedHeads] = field(default_factory=dict)
    seed: int = 0


class Compensation(RegisteredConfig):
    """A change of a pruned model's weights that brings its output closer to the dense model's.

    The class variables declare the inputs that the context must provide.
    """

    needs_statistics: ClassVar[bool] = False
    needs_covariance: ClassVar[bool] = False  # statistics with covariances
    needs_batches: ClassVar[bool] = False  # calibration images; labels are not used

    @abstractmethod
    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
        """Change the weights of `pruned` in place."""


_COMPENSATIONS: Registry[Compensation] = Registry(
    "compensation",
    Compensation,  # type: ignore[type-abstract]  # the base class, which is never instantiated itself
    built_in=("pathprune.pruning.built_in_compensations",),
)

CompensationSpec = Annotated[Any, _COMPENSATIONS]  # what a recipe may give for a compensation

register = _COMPENSATIONS.register
list_compensations = _COMPENSATIONS.list_names
parse_compensation = _COMPENSATIONS.parse
