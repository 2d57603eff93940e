"""Criteria from neuron paths: per-class means of path statistics, reduced over classes."""

# K classes of the statistics

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pathprune.data.class_names import ClassKey
from pathprune.mining.choices import Statistic, Tokens
from pathprune.scoring.criteria import Criterion, ScoringContext, register

if TYPE_CHECKING:
    from pathprune.scoring.scores import Scores

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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
        from pathprune.scoring.path_scores import check_sites, reduce_paths, weigh_classes

        stats = context.mined[self.tokens]
        check_sites(stats, context.adapted)
        weight_K = weigh_classes(
            stats, classes=self.classes, class_weights=self.class_weights, image_classes=context.classes
        )
        return reduce_paths(stats, importance=self.importance, weight_K=weight_K, reduce=self.reduce)


@register("path-class")
class PathClassCriterion(PathCriterion):
    """Influence along neuron paths as published: as `path`, but mined with only the class token clamped."""

    tokens: ClassVar[Tokens] = "class"
