"""Criteria: frozen configs, registered by name, that turn a context into scores.

A third party adds a criterion through an entry point in the group `pathprune.criteria`:

    [project.entry-points."pathprune.criteria"]
    my-criterion = "my_package:MyCriterion"     # a subclass of pathprune.Criterion
"""

# W neurons of a site

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pathprune.scoring.registry import RegisteredConfig, Registry

if TYPE_CHECKING:  # a recipe names criteria and must load without torch
    from pathprune.mining import ClassStats, Tokens
    from pathprune.models.seam import AdaptedModel
    from pathprune.scoring.batches import Batches
    from pathprune.scoring.scores import Scores
    from pathprune.scoring.statistics import ActivationStatistics

_BUILT_IN = (
    "pathprune.scoring.path_criteria",
    "pathprune.scoring.plain_criteria",
    "pathprune.scoring.surgeon_criteria",
    "pathprune.scoring.torch_pruning_criteria",
    "pathprune.scoring.yardsticks",
)


@dataclass(frozen=True)
class ScoringContext:
    """Everything that a criterion may use; inputs that a criterion does not need may be left out.

    - adapted: the model to score.
    - batches: re-iterable calibration images `(images [B, C, H, W], labels [B])`.
    - mined: class statistics of neuron paths, by the tokens that mining clamped.
    - statistics: activation statistics of the model.
    - seed: seed of all random choices.
    - classes: indices of the classes that the images are restricted to; None: all classes.
    """

    adapted: AdaptedModel
    batches: Batches = ()
    mined: Mapping[Tokens, ClassStats] = field(default_factory=dict)
    statistics: ActivationStatistics | None = None
    seed: int = 0
    classes: Collection[int] | None = None


class Criterion(RegisteredConfig):
    """A rule that scores every neuron: higher = keep.

    The class variables and `needs_mining` declare the inputs that the context must provide.
    """

    needs_statistics: ClassVar[bool] = False
    needs_covariance: ClassVar[bool] = False  # statistics with covariances
    needs_labels: ClassVar[bool] = False  # labelled batches

    @property
    def needs_mining(self) -> Tokens | None:
        """Return the tokens whose class statistics the context must provide; None without mining."""
        return None

    @abstractmethod
    def __call__(self, context: ScoringContext) -> Scores:
        """Return the scores `[W]` of every site of `context.adapted`."""


_CRITERIA: Registry[Criterion] = Registry(
    "criterion",
    Criterion,  # type: ignore[type-abstract]  # the base class, which is never instantiated itself
    built_in=_BUILT_IN,
    entry_point_group="pathprune.criteria",
)

CriterionSpec = Annotated[Any, _CRITERIA]  # what a recipe may give for a criterion

register = _CRITERIA.register
list_criteria = _CRITERIA.list_names
get_criterion = _CRITERIA.get
parse_criterion = _CRITERIA.parse


def score(context: ScoringContext, *, criterion: str | Mapping[str, Any] | Criterion) -> Scores:
    """Score every neuron: site name -> `[W]`, finite float64 on the CPU, higher = keep.

    Raises ValueError if the criterion or its options are unknown, or if the context lacks an input of the criterion.
    """
    from pathprune.scoring.scores import validate_scores

    criterion = parse_criterion(criterion)
    sites = context.adapted.sites
    if criterion.needs_mining is not None and criterion.needs_mining not in context.mined:
        raise ValueError(
            f"criterion {criterion.name!r} needs neuron paths mined with tokens={criterion.needs_mining!r}, but the "
            f"context has {', '.join(map(repr, context.mined)) or 'none'}; mine them and pass mined=…"
        )
    if criterion.needs_statistics:
        if context.statistics is None:
            raise ValueError(
                f"criterion {criterion.name!r} needs activation statistics, but the context has none; collect them "
                "with collect_statistics and pass statistics=…"
            )
        context.statistics.check(sites, covariance=criterion.needs_covariance)
    try:
        return validate_scores(criterion(context), sites=sites)
    except ValueError as error:
        raise ValueError(f"criterion {criterion.name!r}: {error}") from error
