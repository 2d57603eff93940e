"""Scores from class statistics of neuron paths: per-class means, reduced over classes."""

# K classes of the statistics, C classes of a chunk with a weight above zero, W neurons of a site

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from pathprune.data.class_names import ClassKey, class_indices, class_name
from pathprune.mining import ClassStats, Statistic
from pathprune.models.seam import AdaptedModel
from pathprune.scoring.scores import Scores

_LOGGER = logging.getLogger(__name__)

_CHUNK_CLASSES = 512  # classes whose statistics of a layer are in memory at once
_TIE_DECIMALS = 9  # counts that agree to this many decimals differ by rounding only


def reduce_paths(
    stats: ClassStats, *, importance: Statistic, weight_K: Tensor, reduce: Literal["mean", "max"]
) -> Scores:
    """Return a score per neuron: the weighted mean or maximum over classes of a statistic; mass breaks ties of counts.

    `weight_K` is the weight of every class of the statistics; 0 for classes that do not count.
    """
    scores = _reduce_classes(stats, importance, weight_K, reduce=reduce)
    if importance == "count":
        scores = _break_ties(scores, by=_reduce_classes(stats, "mass", weight_K, reduce=reduce))
    return dict(zip(stats.site_names, scores, strict=True))


def weigh_classes(
    stats: ClassStats,
    *,
    classes: Sequence[ClassKey] | None,
    class_weights: Mapping[ClassKey, float],
    image_classes: Collection[int] | None,
) -> Tensor:
    """Return the weight of every class of the statistics `[K]`; 0 for classes that do not count.

    `image_classes` are the classes that mining was restricted to; None: all. Of classes without images, the warning
    names these only.
    """
    names = stats.class_names
    own_classes = range(len(names)) if classes is None else class_indices(classes, names)
    own_weights = class_indices(class_weights, names)
    weight_K = torch.zeros(len(names), dtype=torch.float64)
    weight_K[list(own_classes)] = 1.0
    for index, weight in zip(own_weights, class_weights.values(), strict=True):
        if weight_K[index] == 0:
            raise ValueError(
                f"class_weights weighs {class_name(index, names)}, which is not among `classes`; add the class "
                "there, or remove its weight"
            )
        weight_K[index] = weight
    empty = [index for index in stats.empty_classes if weight_K[index] > 0]
    required = [index for index in empty if classes is not None or index in own_weights]
    if required:
        listing = ", ".join(class_name(index, names) for index in required)
        raise ValueError(f"no images of {listing} were mined; mine some, or leave the class out")
    weight_K[empty] = 0.0
    missing = [index for index in empty if image_classes is None or index in image_classes]
    if missing:
        listing = ", ".join(class_name(index, names) for index in missing[:5]) + (" …" if len(missing) > 5 else "")
        _LOGGER.warning("no images were mined of %d classes, left out of the scores: %s", len(missing), listing)
    if weight_K.sum() == 0:
        raise ValueError("no class is left to score by; mine images of at least one class and give it a weight above 0")
    return weight_K


def check_sites(stats: ClassStats, adapted: AdaptedModel) -> None:
    """Raise ValueError unless the statistics are of the model's sites and widths."""
    present = {site.name: site.width for site in adapted.sites}
    if stats.widths != present:
        raise ValueError(f"paths were mined on widths {stats.widths}, but the model has {present}; mine this model")


def _reduce_classes(
    stats: ClassStats, statistic: Statistic, weight_K: Tensor, *, reduce: Literal["mean", "max"]
) -> list[Tensor]:
    """Return the per-class means of a statistic, reduced over classes: per layer `[W]`."""
    weight_of_sum_K = weight_K / stats.num_images.clamp(min=1)
    chunks = torch.split(weight_K.nonzero().flatten(), _CHUNK_CLASSES)
    reduced = []
    for sums_KW in stats.sums(statistic):
        weighted = (weight_of_sum_K[chunk, None] * sums_KW[chunk] for chunk in chunks)
        if reduce == "max":
            reduced.append(torch.stack([layer_CW.amax(0) for layer_CW in weighted]).amax(0))
        else:
            reduced.append(torch.stack([layer_CW.sum(0) for layer_CW in weighted]).sum(0) / weight_K.sum())
    return reduced


def _break_ties(counts: list[Tensor], *, by: list[Tensor]) -> list[Tensor]:
    """Return scores that order by count, then by mass; mass is scaled below the smallest step between counts."""
    rounded = [count_W.round(decimals=_TIE_DECIMALS) for count_W in counts]
    steps = torch.cat(rounded).sort().values.diff()
    step = float(steps[steps > 0].min()) if steps.any() else 1.0
    most = max(float(mass_W.max()) for mass_W in by)
    scale = step / (2 * most) if most > 0 else 0.0
    return [count_W + scale * mass_W for count_W, mass_W in zip(rounded, by, strict=True)]
