"""Criteria from neuron paths: per-class means of path statistics, reduced over classes."""

# K classes of the statistics, C classes of a chunk with a weight above zero, W neurons of a site

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pathprune.data.class_names import ClassKey, class_indices, class_name
from pathprune.mining import ClassStats, Statistic, Tokens
from pathprune.models.seam import AdaptedModel
from pathprune.scoring.criteria import Criterion, ScoringContext, register
from pathprune.scoring.scores import Scores

_LOGGER = logging.getLogger(__name__)

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_CHUNK_CLASSES = 512  # classes whose statistics of a layer are in memory at once
_TIE_DECIMALS = 9  # counts that agree to this many decimals differ by rounding only


@register("path")
class PathCriterion(Criterion):
    """Influence along neuron paths (arXiv 2503.09046), mined with every token clamped.

    Pruning affects every token.
    """

    tokens: ClassVar[Tokens] = "all"

    importance: Statistic = Field(
        "mass",
        description="mass: the neuron's own attribution as a fraction of its layer's. count: how often the neuron is "
        "on a path; mass breaks ties. published-mass: the neuron's fraction of the published path score, for "
        "comparison.",
    )
    reduce: Literal["mean", "max"] = Field(
        "mean",
        description="Reduction over classes. mean: the weighted mean. max: the largest weighted value, which keeps a "
        "neuron that any class needs.",
    )
    classes: tuple[ClassKey, ...] | None = Field(
        None,
        description="Classes to score by, as indices or names. null: all classes, except those without mined images, "
        "which are left out with a warning.",
    )
    class_weights: dict[ClassKey, Weight] = Field(
        default_factory=dict,
        description="Weights of single classes, by index or name, each with mined images. Other classes weigh 1.",
    )

    @property
    def needs_mining(self) -> Tokens:
        return self.tokens

    def __call__(self, context: ScoringContext) -> Scores:
        stats = context.mined[self.tokens]
        _check_sites(stats, context.adapted)
        weight_K = self._weigh_classes(stats, image_classes=context.classes)
        if self.importance == "count":
            counts = self._reduce_classes(stats, "count", weight_K)
            scores = _break_ties(counts, by=self._reduce_classes(stats, "mass", weight_K))
        else:
            scores = self._reduce_classes(stats, self.importance, weight_K)
        return dict(zip(stats.site_names, scores, strict=True))

    def _weigh_classes(self, stats: ClassStats, *, image_classes: Collection[int] | None) -> Tensor:
        """Return the weight of every class of the statistics `[K]`; 0 for classes that do not count.

        `image_classes` are the classes that mining was restricted to; None: all. Of classes without images, the warning
        names these only.
        """
        names = stats.class_names
        own_classes = range(len(names)) if self.classes is None else class_indices(self.classes, names)
        own_weights = class_indices(self.class_weights, names)
        weight_K = torch.zeros(len(names), dtype=torch.float64)
        weight_K[list(own_classes)] = 1.0
        for index, weight in zip(own_weights, self.class_weights.values(), strict=True):
            if weight_K[index] == 0:
                raise ValueError(
                    f"class_weights weighs {class_name(index, names)}, which is not among `classes`; add the class "
                    "there, or remove its weight"
                )
            weight_K[index] = weight
        empty = [index for index in stats.empty_classes if weight_K[index] > 0]
        required = [index for index in empty if self.classes is not None or index in own_weights]
        if required:
            listing = ", ".join(class_name(index, names) for index in required)
            raise ValueError(f"no images of {listing} were mined; mine some, or leave the class out")
        weight_K[empty] = 0.0
        missing = [index for index in empty if image_classes is None or index in image_classes]
        if missing:
            listing = ", ".join(class_name(index, names) for index in missing[:5]) + (" …" if len(missing) > 5 else "")
            _LOGGER.warning("no images were mined of %d classes, left out of the scores: %s", len(missing), listing)
        if weight_K.sum() == 0:
            raise ValueError(
                "no class is left to score by; mine images of at least one class and give it a weight above 0"
            )
        return weight_K

    def _reduce_classes(self, stats: ClassStats, statistic: Statistic, weight_K: Tensor) -> list[Tensor]:
        """Return the per-class means of a statistic, reduced over classes: per layer `[W]`."""
        weight_of_sum_K = weight_K / stats.num_images.clamp(min=1)
        chunks = torch.split(weight_K.nonzero().flatten(), _CHUNK_CLASSES)
        reduced = []
        for sums_KW in stats.sums(statistic):
            weighted = (weight_of_sum_K[chunk, None] * sums_KW[chunk] for chunk in chunks)
            if self.reduce == "max":
                reduced.append(torch.stack([layer_CW.amax(0) for layer_CW in weighted]).amax(0))
            else:
                reduced.append(torch.stack([layer_CW.sum(0) for layer_CW in weighted]).sum(0) / weight_K.sum())
        return reduced


@register("path-class")
class PathClassCriterion(PathCriterion):
    """Influence along neuron paths as published: as `path`, but mined with only the class token clamped."""

    tokens: ClassVar[Tokens] = "class"


def _break_ties(counts: list[Tensor], *, by: list[Tensor]) -> list[Tensor]:
    """Return scores that order by count, then by mass; mass is scaled below the smallest step between counts."""
    rounded = [count_W.round(decimals=_TIE_DECIMALS) for count_W in counts]
    steps = torch.cat(rounded).sort().values.diff()
    step = float(steps[steps > 0].min()) if steps.any() else 1.0
    most = max(float(mass_W.max()) for mass_W in by)
    scale = step / (2 * most) if most > 0 else 0.0
    return [count_W + scale * mass_W for count_W, mass_W in zip(rounded, by, strict=True)]


def _check_sites(stats: ClassStats, adapted: AdaptedModel) -> None:
    present = {site.name: site.width for site in adapted.sites}
    if stats.widths != present:
        raise ValueError(f"paths were mined on widths {stats.widths}, but the model has {present}; mine this model")
