"""Scores per neuron: site name -> [W_l], higher = keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pathprune.models.seam import NeuronSite

Scores = dict[str, Tensor]


def validate_scores(scores: Mapping[str, Tensor], *, sites: Sequence[NeuronSite]) -> Scores:
    """The scores of exactly these sites, in their order, as float64 on the CPU.

    Raises ValueError naming the site whose scores are missing, of another width than the site's, or not finite.
    """
    unknown = sorted(scores.keys() - {site.name for site in sites})
    if unknown:
        raise ValueError(f"scores for {', '.join(unknown)}, which the model does not have")
    checked: Scores = {}
    for site in sites:
        if site.name not in scores:
            raise ValueError(f"no scores for {site.name}; every site needs one score per neuron")
        site_scores = scores[site.name].detach().cpu().to(torch.float64)
        if site_scores.shape != (site.width,):
            raise ValueError(
                f"scores of {site.name} have shape {list(site_scores.shape)}; the site has {site.width} neurons, "
                f"so [{site.width}] is needed"
            )
        num_bad = int((~site_scores.isfinite()).sum())
        if num_bad:
            raise ValueError(f"{num_bad} of {site.width} scores of {site.name} are NaN or infinite")
        checked[site.name] = site_scores
    return checked
