"""Locate the influential neuron path of every image in a batch."""

# B images, M nodes, R clamped tokens, W neurons of a layer, k neurons chosen in a layer, L layers

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from pathprune.mining import baselines
from pathprune.mining.attribution import CleanPass, JointAttribution, at_least_float32
from pathprune.mining.objectives import Objective, Readout, objective_for
from pathprune.mining.paths import MinedPaths, normalised
from pathprune.mining.quadrature import nodes_and_weights, nodes_for
from pathprune.models.adapt import evaluating, model_device
from pathprune.models.precision import mixed_precision
from pathprune.models.seam import AdaptedModel

METHODS = ("jas", "activation", "influence-pattern")
TOKENS = ("class", "all")


@torch.no_grad()
def locate_paths(
    adapted: AdaptedModel,
    images: Tensor,
    targets: Tensor | None = None,
    *,
    method: str = "jas",
    rule: str = "gauss-legendre",
    nodes: int | None = None,
    first_nodes: int | None = None,
    top_k: int = 1,
    tokens: str = "class",
    objective: Objective | Readout | None = None,
    dtype: torch.dtype | None = None,
) -> MinedPaths:
    """The neuron path of each image, one neuron (or the best `top_k`) in every layer, with dense scores of all neurons.

    `images` are normalised, `[B, C, H, W]`; `targets` `[B]` are the classes to explain, None for the model's own
    predictions. The model is left as it was; memory grows with `B · nodes`.

    - method: `jas` locates layer by layer with the joint attribution score; `activation` and `influence-pattern` are
      the baselines of the paper.
    - rule, nodes: the quadrature of the integrals; the paper's is `left-riemann` with 20 nodes.
      None for as many Gauss-Legendre nodes as find more than 99.5 % of the converged integral's neurons: 4, or 6 where
      all tokens are clamped. Most of the rest are ties, of scores that differ by a ten-thousandth.
    - first_nodes: nodes of the first layer, whose integral is the roughest; None for as many as `nodes` says, and 12
      where neither is given and all tokens are clamped.
    - tokens: `class` clamps the tokens that the head reads (class and distillation token), `all` clamps every token.
    - objective: what a path explains, in place of the target's probability: an objective, or a function of the model's
      output `[B, K]` -> `[B]`. A model without a classifier is explained by the cosine with its clean embedding.
    - dtype: run block passes in this precision by autocast; softmax, sums and scores stay in float32 or better.

    Raises `ValueError` for a setting or target out of range, and for activations that are not finite.
    Source: "Discovering Influential Neuron Path in Vision Transformers", arXiv 2503.09046.
    """
    _check_settings(adapted, method, top_k, tokens)
    images = _checked_images(adapted, images).to(model_device(adapted.model))
    quadrature, first = (nodes_and_weights(rule, number) for number in nodes_for(tokens, nodes, first_nodes))
    opened = _attribution(adapted, images, targets, quadrature, tokens, objective, dtype)
    with opened as (attribution, predictions, targets):
        if method == "jas":
            scores, own, chosen, jas = _layer_by_layer(attribution, first, top_k)
        else:
            if method == "activation":
                scores, own = baselines.activation(attribution)
            else:
                scores, own = baselines.influence_pattern(attribution, images)
            chosen = [_best(scores_BW, top_k) for scores_BW in scores]
            jas = attribution.joint_score(torch.stack([chosen_Bk[:, 0] for chosen_Bk in chosen], dim=1))
    return MinedPaths(
        paths=torch.stack(chosen, dim=1),
        scores=_stacked(scores),
        own=_stacked(own),
        mass=_stacked([normalised(own_BW) for own_BW in own]),
        jas=jas,
        targets=targets,
        predictions=predictions,
    )


@torch.no_grad()
def path_scores(
    adapted: AdaptedModel,
    images: Tensor,
    paths: Tensor,
    targets: Tensor | None = None,
    *,
    rule: str = "gauss-legendre",
    nodes: int | None = None,
    tokens: str = "class",
    objective: Objective | Readout | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The joint attribution score `[B]` of a path given for each image: one neuron in every layer, int64 `[B, L]`.

    All else is as in `locate_paths`.
    """
    _check_settings(adapted, "jas", 1, tokens)
    images = _checked_images(adapted, images).to(model_device(adapted.model))
    if paths.shape != (len(images), len(adapted.sites)):
        raise ValueError(f"paths have shape {list(paths.shape)}; expected [{len(images)}, {len(adapted.sites)}]")
    quadrature = nodes_and_weights(rule, nodes_for(tokens, nodes)[0])
    opened = _attribution(adapted, images, targets, quadrature, tokens, objective, dtype)
    with opened as (attribution, _, _):
        return attribution.joint_score(paths.to(images.device))


@contextmanager
def _attribution(
    adapted: AdaptedModel,
    images: Tensor,
    targets: Tensor | None,
    quadrature: tuple[Tensor, Tensor],
    tokens: str,
    objective: Objective | Readout | None,
    dtype: torch.dtype | None,
) -> Iterator[tuple[JointAttribution, Tensor, Tensor]]:
    """The attribution of a batch after its clean pass, with predictions and targets `[B]`; the model evaluates."""
    device = images.device
    exact = at_least_float32(images.dtype)
    readout = torch.tensor(adapted.readout, device=device) if adapted.readout else None
    rows = readout if tokens == "class" else None
    with evaluating(adapted.model):
        # one pass of many, whose rounding would go into every score: in full precision
        clean = _clean_pass(adapted, images, rows, exact)
        objective = objective_for(adapted.num_classes, objective)
        predictions, targets = _classes(objective, clean.output_BK, targets)
        value = objective.readout(clean.output_BK, targets)
        alpha_M, weight_M = (x_M.to(device, exact) for x_M in quadrature)
        with mixed_precision(adapted.model, dtype) as passes:
            attribution = JointAttribution(adapted, value, clean, alpha_M, weight_M, rows, readout, passes)
            yield attribution, predictions, targets


def _layer_by_layer(
    attribution: JointAttribution, first: tuple[Tensor, Tensor], top_k: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Locate layer by layer: scores and own terms `[B, W]` and chosen neurons `[B, k]` of every layer, JAS `[B]`.

    `first` are the nodes and weights of the first layer.
    """
    scores: list[Tensor] = []
    own: list[Tensor] = []
    chosen: list[Tensor] = []
    prefix = attribution.start()
    for a_BRW in attribution.clean.values:
        if chosen:
            prefix = attribution.advance(prefix, chosen[-1])
            g_BRW, earlier_g_B = attribution.layer_gradients(prefix)
        else:
            g_BRW, earlier_g_B = _first_gradients(attribution, first), a_BRW.new_zeros(len(a_BRW))
        earlier_a_B = attribution.path_activation(chosen)
        scores.append((g_BRW.sum(1) + earlier_g_B[:, None]) * (a_BRW.sum(1) + earlier_a_B[:, None]))
        own.append((a_BRW * g_BRW).sum(1))
        chosen.append(_best(scores[-1], top_k))
    if top_k == 1:  # the carried prefix already clamps the path that the JAS is about
        jas = attribution.path_activation(chosen) * attribution.path_gradient(prefix, chosen[-1])
    else:
        jas = attribution.joint_score(torch.stack([chosen_Bk[:, 0] for chosen_Bk in chosen], dim=1))
    return scores, own, chosen, jas


def _first_gradients(attribution: JointAttribution, quadrature: tuple[Tensor, Tensor]) -> Tensor:
    """The first layer's gradients `[B, R, W]`, at nodes of its own: as many at a time as the other layers have."""
    alpha_M, weight_M = (torch.split(x_M.to(attribution.alpha_M), len(attribution.alpha_M)) for x_M in quadrature)
    parts = [replace(attribution, alpha_M=a_M, weight_M=w_M) for a_M, w_M in zip(alpha_M, weight_M, strict=True)]
    return torch.stack([part.layer_gradients(part.start())[0] for part in parts]).sum(0)


def _best(scores_BW: Tensor, top_k: int) -> Tensor:
    """The columns of the `top_k` highest scores `[B, k]`, best first; of equal scores, the lower column first."""
    return scores_BW.sort(dim=1, descending=True, stable=True).indices[:, :top_k]


def _stacked(per_layer: list[Tensor]) -> Tensor | list[Tensor]:
    """`[B, L, W]`, or the list itself where layers differ in width."""
    return torch.stack(per_layer, dim=1) if len({layer.shape[1] for layer in per_layer}) == 1 else per_layer


def _clean_pass(adapted: AdaptedModel, images: Tensor, rows: Tensor | None, exact: torch.dtype) -> CleanPass:
    values, finite = [], []
    opened = m, u = adapted.open_block(0, adapted.stem(images))
    for block in range(len(adapted.sites)):
        if block > 0:
            m, u = adapted.open_block(block, adapted.close_block(block - 1, m, u))
        values.append((u if rows is None else u[:, rows]).to(exact))
        finite.append(torch.stack(u.aminmax()).isfinite().all())
    output = adapted.head(adapted.close_block(len(adapted.sites) - 1, m, u))
    for site, is_finite in zip(adapted.sites, torch.stack(finite).tolist(), strict=True):
        if not is_finite:
            raise ValueError(
                f"the hidden activations of block {site.block} ({site.name}) are NaN or infinite; check that the "
                "images are finite and normalised, the weights intact and the precision wide enough"
            )
    return CleanPass(opened, tuple(values), output.to(exact))


def _classes(objective: Objective, output_BK: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Predictions and targets, int64 `[B]`; both -1 where the objective has no classes."""
    logits_BC = objective.class_logits(output_BK)
    if logits_BC is None:
        if targets is not None:
            raise ValueError("targets were given, but there is no classifier that they are classes of; leave them None")
        none = torch.full((len(output_BK),), -1, device=output_BK.device)
        return none, none
    predictions = logits_BC.argmax(-1)
    if targets is None:
        return predictions, predictions
    num_images, num_classes = logits_BC.shape
    if targets.shape != (num_images,) or targets.is_floating_point():
        raise ValueError(
            f"targets are {targets.dtype} of shape {list(targets.shape)}; expected one integer class for each of the "
            f"{num_images} images"
        )
    for value in targets.tolist():
        if not 0 <= value < num_classes:
            raise ValueError(f"target {value} is out of range: there are {num_classes} classes")
    return predictions, targets.to(predictions)


def _check_settings(adapted: AdaptedModel, method: str, top_k: int, tokens: str) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown mining method {method!r}; choose from {', '.join(METHODS)}")
    if tokens not in TOKENS:
        raise ValueError(f"unknown tokens {tokens!r}; choose from {', '.join(TOKENS)}")
    if tokens == "class" and not adapted.readout:
        raise ValueError("tokens='class', but the model's head pools over all tokens; use tokens='all'")
    narrowest = min(adapted.sites, key=lambda site: site.width)
    if not 1 <= top_k <= narrowest.width:
        raise ValueError(f"top_k={top_k} is out of range: choose 1 to {narrowest.width}, the width of {narrowest.name}")


def _checked_images(adapted: AdaptedModel, images: Tensor) -> Tensor:
    dtype = next(adapted.model.parameters()).dtype
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images have shape {list(images.shape)}; expected [B, C, H, W] with at least one image")
    if images.dtype != dtype:
        raise ValueError(f"images are {images.dtype} but the model is {dtype}; convert one of them")
    return images
