"""Neuron paths -> one importance per neuron: per-class means, reduced over classes."""

# K classes of the statistics, C classes that are weighed, W neurons of a site

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pathprune.data.class_names import ClassKey, class_indices, class_name
from pathprune.mining import ClassStats, Tokens
from pathprune.models.seam import AdaptedModel
from pathprune.scoring.criteria import Criterion, ScoringContext, register
from pathprune.scoring.scores import Scores

_LOGGER = logging.getLogger(__name__)

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_CLASSES_AT_ONCE = 512  # whose statistics of a layer are in memory together
_TIE_DECIMALS = 9  # counts closer than this differ by rounding only


@register("path")
class PathCriterion(Criterion):
    """Influence along neuron paths (arXiv 2503.09046), every token clamped when mining: what removal does.

    - importance: `mass`, the neuron's own attribution as a share of its layer's; `count`, how often it is on the path,
      ties broken by mass; `published-mass`, the share of the published score, for comparison.
    - reduce: over classes: `mean`, or `max` (a neuron that any class needs stays).
    - classes: the classes that matter, by index or name; null: all. A class without images that is named here is an
      error; otherwise it is left out with a warning.
    - class_weights: weights of single classes, by index or name; the others weigh 1.
    """

    tokens: ClassVar[Tokens] = "all"

    importance: Literal["mass", "count", "published-mass"] = "mass"
    reduce: Literal["mean", "max"] = "mean"
    classes: tuple[ClassKey, ...] | None = None
    class_weights: dict[ClassKey, Weight] = Field(default_factory=dict)

    @property
    def needs_mining(self) -> Tokens:
        return self.tokens

    def __call__(self, context: ScoringContext) -> Scores:
        stats = context.mined[self.tokens]
        _check_sites(stats, context.adapted)
        weight_K = self._class_weights(stats, among=context.classes)
        if self.importance == "count":
            scores = _break_ties(self._reduced(stats, "count", weight_K), by=self._reduced(stats, "mass", weight_K))
        else:
            scores = self._reduced(stats, self.importance, weight_K)
        return dict(zip(stats.site_names, scores, strict=True))

    def _class_weights(self, stats: ClassStats, *, among: Collection[int] | None) -> Tensor:
        """One weight per class of the statistics, 0 for those that are left out: `[K]`; images are of those `among`."""
        names = stats.class_names
        named = range(len(names)) if self.classes is None else class_indices(self.classes, names)
        weighed = class_indices(self.class_weights, names)
        weight_K = torch.zeros(len(names), dtype=torch.float64)
        weight_K[list(named)] = 1.0
        for index, weight in zip(weighed, self.class_weights.values(), strict=True):
            if weight_K[index] == 0:
                raise ValueError(f"class_weights weighs {class_name(index, names)}, which is not among `classes`")
            weight_K[index] = weight
        empty = [index for index in stats.empty_classes if weight_K[index] > 0]
        asked = [index for index in empty if self.classes is not None or index in weighed]
        if asked:
            listed = ", ".join(class_name(index, names) for index in asked)
            raise ValueError(f"no images of {listed} were mined; mine some, or leave the class out")
        weight_K[empty] = 0.0
        missed = [index for index in empty if among is None or index in among]
        if missed:
            listed = ", ".join(class_name(index, names) for index in missed[:5]) + (" …" if len(missed) > 5 else "")
            _LOGGER.warning("no images were mined of %d classes, left out of the scores: %s", len(missed), listed)
        if weight_K.sum() == 0:
            raise ValueError("no class is left to score by: all are without images, or weigh 0")
        return weight_K

    def _reduced(self, stats: ClassStats, kind: str, weight_K: Tensor) -> list[Tensor]:
        weight_of_sum_K = weight_K / stats.num_images.clamp(min=1)
        chunks = torch.split(weight_K.nonzero().flatten(), _CLASSES_AT_ONCE)
        reduced = []
        for sums_KW in stats.sums(kind):
            weighted = (weight_of_sum_K[chunk, None] * sums_KW[chunk] for chunk in chunks)
            if self.reduce == "max":
                reduced.append(torch.stack([layer_CW.amax(0) for layer_CW in weighted]).amax(0))
            else:
                reduced.append(torch.stack([layer_CW.sum(0) for layer_CW in weighted]).sum(0) / weight_K.sum())
        return reduced


@register("path-class")
class PathClassCriterion(PathCriterion):
    """The paper's reading: as `path`, with the class token's row alone clamped when mining."""

    tokens: ClassVar[Tokens] = "class"


def _break_ties(counts: list[Tensor], *, by: list[Tensor]) -> list[Tensor]:
    """Order by count, then by mass, as one number: mass is scaled to less than the smallest step between counts."""
    rounded = [count_W.round(decimals=_TIE_DECIMALS) for count_W in counts]
    steps = torch.cat(rounded).sort().values.diff()
    step = float(steps[steps > 0].min()) if steps.any() else 1.0
    most = max(float(mass_W.max()) for mass_W in by)
    scale = step / (2 * most) if most > 0 else 0.0
    return [count_W + scale * mass_W for count_W, mass_W in zip(rounded, by, strict=True)]


def _check_sites(stats: ClassStats, adapted: AdaptedModel) -> None:
    present = {site.name: site.width for site in adapted.sites}
    if stats.widths != present:
        raise ValueError(f"paths were mined on neurons {stats.widths}, the model has {present}; mine this model")
