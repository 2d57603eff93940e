"""Scores of neurons: site name -> `[W]`, higher = keep."""

# W neurons of a site

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pathprune.models.seam import NeuronSite

Scores = dict[str, Tensor]


def validate_scores(scores: Mapping[str, Tensor], *, sites: Sequence[NeuronSite]) -> Scores:
    """Return the scores in the order of `sites`, as float64 on the CPU.

    Raises ValueError that names the site if its scores are missing, have another width or are not finite, or if the
    model has no such site.
    """
    unknown = sorted(scores.keys() - {site.name for site in sites})
    if unknown:
        raise ValueError(f"scores for {', '.join(unknown)}, which the model does not have; score this model's sites")
    result: Scores = {}
    for site in sites:
        if site.name not in scores:
            raise ValueError(f"no scores for {site.name}; every site needs one score per neuron")
        scores_W = scores[site.name].detach().cpu().to(torch.float64)
        if scores_W.shape != (site.width,):
            raise ValueError(
                f"scores of {site.name} have shape {list(scores_W.shape)}, but the site has {site.width} neurons; give "
                f"scores of shape [{site.width}]"
            )
        num_bad = int((~scores_W.isfinite()).sum())
        if num_bad:
            raise ValueError(
                f"{num_bad} of {site.width} scores of {site.name} are NaN or infinite; check the model's activations"
            )
        result[site.name] = scores_W
    return result
