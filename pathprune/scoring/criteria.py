"""What a criterion is: a frozen config, registered by name, that turns a context into scores.

A third party adds one without touching this package, by an entry point in the group `pathprune.criteria`:

    [project.entry-points."pathprune.criteria"]
    my-criterion = "my_package:MyCriterion"     # a subclass of pathprune.scoring.Criterion
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from pathprune.mining import ClassStats, Tokens
from pathprune.models.seam import AdaptedModel
from pathprune.scoring.registry import Registered, Registry
from pathprune.scoring.scores import Scores, validate_scores
from pathprune.scoring.statistics import ActivationStatistics


@dataclass(frozen=True)
class ScoringContext:
    """Everything that criteria may look at; what a criterion does not ask for may be left out.

    `batches` is a re-iterable of `(images [B, C, H, W], labels [B])`; `mined` holds class statistics by the tokens that
    were clamped when mining. `classes` are those that the images are of, where that is not all of the model's.
    """

    adapted: AdaptedModel
    batches: Iterable[tuple[Tensor, Tensor]] = ()
    mined: Mapping[Tokens, ClassStats] = field(default_factory=dict)
    statistics: ActivationStatistics | None = None
    seed: int = 0
    classes: Collection[int] | None = None


class Criterion(Registered):
    """Scores neurons: higher = keep. The class variables and `needs_mining` say what the context must hold."""

    needs_statistics: ClassVar[bool] = False
    needs_covariance: ClassVar[bool] = False  # the statistics with covariances
    needs_labels: ClassVar[bool] = False  # labelled batches

    @property
    def needs_mining(self) -> Tokens | None:
        """The tokens whose class statistics the context must hold."""
        return None

    @abstractmethod
    def __call__(self, context: ScoringContext) -> Scores:
        """One score per neuron `[W_l]` of every site of `context.adapted`."""


_CRITERIA: Registry[Criterion] = Registry(
    "criterion",
    Criterion,  # type: ignore[type-abstract]  # the base of what is registered, never instantiated itself
    entry_point_group="pathprune.criteria",
)

register = _CRITERIA.register
list_criteria = _CRITERIA.names
get_criterion = _CRITERIA.get
parse_criterion = _CRITERIA.parse


def score(context: ScoringContext, *, criterion: str | Mapping[str, Any] | Criterion) -> Scores:
    """Score every neuron: site name -> `[W_l]` float64 on the CPU, checked to be finite.

    Raises ValueError if the criterion or its options are unknown, or if the context lacks what the criterion needs.
    """
    criterion = parse_criterion(criterion)
    sites = context.adapted.sites
    if criterion.needs_mining is not None and criterion.needs_mining not in context.mined:
        raise ValueError(
            f"criterion {criterion.name!r} needs neuron paths mined with tokens={criterion.needs_mining!r}; "
            f"there are {', '.join(map(repr, context.mined)) or 'none'}"
        )
    if criterion.needs_statistics:
        if context.statistics is None:
            raise ValueError(f"criterion {criterion.name!r} needs activation statistics; see collect_statistics")
        context.statistics.check(sites, covariance=criterion.needs_covariance)
    try:
        return validate_scores(criterion(context), sites=sites)
    except ValueError as error:
        raise ValueError(f"criterion {criterion.name!r}: {error}") from error
