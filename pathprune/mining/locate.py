"""Location of the most influential neuron path of every image in a batch."""

# B images, M nodes, R clamped tokens, W neurons of a layer, k neurons chosen in a layer, L layers

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pathprune.mining import baselines
from pathprune.mining.attribution import JointAttribution, promote_to_float32
from pathprune.mining.choices import METHODS, TOKENS, Method, Rule, Tokens
from pathprune.mining.clean_pass import resolve_classes, run_clean_pass
from pathprune.mining.integral import Integral, resolve_nodes
from pathprune.mining.mined_paths import MinedPaths, normalize_rows
from pathprune.mining.objectives import Objective, ObjectiveFunction, resolve_objective
from pathprune.mining.quadrature import Quadrature
from pathprune.models.adapt import evaluating, find_device
from pathprune.models.precision import mixed_precision
from pathprune.models.seam import AdaptedModel


@torch.no_grad()
def locate_paths(
    adapted: AdaptedModel,
    images: Tensor,
    targets: Tensor | None = None,
    *,
    method: Method = "jas",
    rule: Rule = "gauss-legendre",
    nodes: int | None = None,
    first_nodes: int | None = None,
    top_k: int = 1,
    tokens: Tokens = "class",
    objective: Objective | ObjectiveFunction | None = None,
    dtype: torch.dtype | None = None,
) -> MinedPaths:
    """Locate the neuron path of each image: the best neuron (or `top_k` neurons) of every layer, and all scores.

    `images` are normalised, `[B, C, H, W]`. `targets` are the classes to explain, `[B]`, None for the model's own
    predictions. The model is left unchanged. Memory grows with `B · nodes`.

    - method: `jas` locates layer by layer with the joint attribution score. `activation` and `influence-pattern` are
      the paper's baselines.
    - rule, nodes: the quadrature of the integrals; the paper's is `left-riemann` with 20 nodes. None: 4 nodes, or 6
      with all tokens clamped. As Gauss–Legendre nodes, they find more than 99.5 % of the converged integral's neurons.
      Most of the other neurons are near ties, with scores that differ by a ten-thousandth.
    - first_nodes: the number of nodes of the first layer, where the integrand is the roughest. None: as many as
      `nodes`, or 12 if `nodes` is None too and all tokens are clamped.
    - tokens: `class` clamps the tokens that the head reads (class and distillation token), `all` clamps every token.
    - objective: the number to explain: an objective, or a function of the model's output `[B, K]` -> `[B]`. None: the
      target's probability, or the cosine to the clean embedding for a model without a classifier.
    - dtype: the autocast dtype of block passes. Softmax, sums and scores stay in float32 or better.

    Raises `ValueError` for a setting or target out of range, and for activations that are not finite.
    Source: "Discovering Influential Neuron Path in Vision Transformers", arXiv 2503.09046.
    """
    _check_settings(adapted, method=method, top_k=top_k, tokens=tokens)
    images = _check_images(adapted, images).to(find_device(adapted.model))
    nodes, first_nodes = resolve_nodes(tokens, nodes, first_nodes)
    integral = Integral(rule, nodes, first_nodes, tokens, dtype)
    with _open_batch(adapted, images, targets, integral=integral, objective=objective) as batch:
        if method == "jas":
            location = _locate_jointly(batch.attribution, integral, top_k)
        else:
            location = _locate_by_ranking(batch.attribution, images, method, top_k)
    return MinedPaths(
        paths=torch.stack(location.chosen, dim=1),
        scores=_stack_layers(location.scores),
        own=_stack_layers(location.own),
        mass=_stack_layers([normalize_rows(own_BW) for own_BW in location.own]),
        jas=location.jas_B,
        targets=batch.targets_B,
        predictions=batch.predictions_B,
    )


@torch.no_grad()
def score_paths(
    adapted: AdaptedModel,
    images: Tensor,
    paths: Tensor,
    targets: Tensor | None = None,
    *,
    rule: Rule = "gauss-legendre",
    nodes: int | None = None,
    tokens: Tokens = "class",
    objective: Objective | ObjectiveFunction | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the joint attribution score `[B]` of one path per image: one neuron in every layer, int64 `[B, L]`.

    The other arguments and the errors are those of `locate_paths`.
    """
    _check_settings(adapted, method="jas", top_k=1, tokens=tokens)
    images = _check_images(adapted, images).to(find_device(adapted.model))
    if paths.shape != (len(images), len(adapted.sites)):
        raise ValueError(f"paths have shape {list(paths.shape)}; expected [{len(images)}, {len(adapted.sites)}]")
    integral = Integral(rule, *resolve_nodes(tokens, nodes), tokens, dtype)
    with _open_batch(adapted, images, targets, integral=integral, objective=objective) as batch:
        return batch.attribution.score_path(paths.to(images.device))


@dataclass(frozen=True)
class _Batch:
    """Attribution of a batch after its clean pass, with the classes of its images."""

    attribution: JointAttribution
    predictions_B: Tensor
    targets_B: Tensor


@dataclass(frozen=True)
class _Location:
    """Paths of a batch with their scores, layer by layer."""

    scores: list[Tensor]  # per layer [B, W]
    own: list[Tensor]  # per layer [B, W]
    chosen: list[Tensor]  # per layer int64 [B, k], best first
    jas_B: Tensor


@contextmanager
def _open_batch(
    adapted: AdaptedModel,
    images: Tensor,
    targets: Tensor | None,
    *,
    integral: Integral,
    objective: Objective | ObjectiveFunction | None,
) -> Iterator[_Batch]:
    """Run the clean pass and yield the batch's attribution, with the model in eval mode."""
    device = images.device
    dtype = promote_to_float32(images.dtype)
    quadrature = Quadrature(*(x_M.to(device, dtype) for x_M in integral.quadrature()))
    readout_tokens = torch.tensor(adapted.readout, device=device) if adapted.readout else None
    clamped_tokens = readout_tokens if integral.tokens == "class" else None
    with evaluating(adapted.model):
        # in full precision: rounding in this one pass would go into every score
        clean = run_clean_pass(adapted, images, clamped_tokens=clamped_tokens, dtype=dtype)
        objective = resolve_objective(adapted.num_classes, objective)
        predictions_B, targets_B = resolve_classes(objective, clean.output_BK, targets)
        with mixed_precision(adapted.model, integral.dtype) as passes:
            attribution = JointAttribution(
                adapted=adapted,
                objective=objective.bind(clean.output_BK, targets_B),
                clean=clean,
                quadrature=quadrature,
                clamped_tokens=clamped_tokens,
                readout_tokens=readout_tokens,
                passes=passes,
            )
            yield _Batch(attribution, predictions_B, targets_B)


def _locate_jointly(attribution: JointAttribution, integral: Integral, top_k: int) -> _Location:
    """Locate layer by layer with the joint attribution score."""
    scores: list[Tensor] = []
    own: list[Tensor] = []
    chosen: list[Tensor] = []
    prefix = attribution.start()
    for a_BRW in attribution.clean.values:
        if chosen:
            prefix = attribution.advance(prefix, chosen[-1])
            g_BRW, earlier_g_B = attribution.integrate_layer(prefix)
        else:
            g_BRW = _integrate_first_layer(attribution, integral.first_quadrature())
            earlier_g_B = a_BRW.new_zeros(len(a_BRW))
        earlier_a_B = attribution.sum_activations(chosen)
        scores.append((g_BRW.sum(1) + earlier_g_B[:, None]) * (a_BRW.sum(1) + earlier_a_B[:, None]))
        own.append((a_BRW * g_BRW).sum(1))
        chosen.append(_choose_best(scores[-1], top_k))
    if top_k == 1:  # the prefix already clamps the path to score
        jas_B = attribution.sum_activations(chosen) * attribution.integrate_path(prefix, chosen[-1])
    else:
        jas_B = attribution.score_path(_take_best_path(chosen))
    return _Location(scores, own, chosen, jas_B)


def _locate_by_ranking(attribution: JointAttribution, images: Tensor, method: Method, top_k: int) -> _Location:
    """Locate with a baseline, which ranks every layer on its own."""
    if method == "activation":
        scores, own = baselines.rank_by_activation(attribution)
    else:
        scores, own = baselines.rank_by_influence(attribution, images)
    chosen = [_choose_best(scores_BW, top_k) for scores_BW in scores]
    return _Location(scores, own, chosen, attribution.score_path(_take_best_path(chosen)))


def _integrate_first_layer(attribution: JointAttribution, quadrature: Quadrature) -> Tensor:
    """Return the first layer's gradients `[B, R, W]`, with at most as many nodes at once as the other layers have."""
    size = len(attribution.quadrature.alpha_M)
    alpha_M, weight_M = (torch.split(x_M.to(attribution.quadrature.alpha_M), size) for x_M in quadrature)
    parts = [replace(attribution, quadrature=Quadrature(*pair)) for pair in zip(alpha_M, weight_M, strict=True)]
    return torch.stack([part.integrate_layer(part.start())[0] for part in parts]).sum(0)


def _choose_best(scores_BW: Tensor, top_k: int) -> Tensor:
    """Return the columns of the `top_k` highest scores, best first `[B, k]`; ties go to the lower column."""
    return scores_BW.sort(dim=1, descending=True, stable=True).indices[:, :top_k]


def _take_best_path(chosen: list[Tensor]) -> Tensor:
    """Return the path of each layer's best neuron: per layer `[B, k]` -> `[B, L]`."""
    return torch.stack([chosen_Bk[:, 0] for chosen_Bk in chosen], dim=1)


def _stack_layers(layers: list[Tensor]) -> Tensor | list[Tensor]:
    """Return `[B, L, W]`, or the list itself where layers differ in width."""
    return torch.stack(layers, dim=1) if len({layer.shape[1] for layer in layers}) == 1 else layers


def _check_settings(adapted: AdaptedModel, *, method: str, top_k: int, tokens: str) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown mining method {method!r}; choose from {', '.join(METHODS)}")
    if tokens not in TOKENS:
        raise ValueError(f"unknown tokens {tokens!r}; choose from {', '.join(TOKENS)}")
    if tokens == "class" and not adapted.readout:
        raise ValueError("tokens='class', but the model's head pools over all tokens; use tokens='all'")
    narrowest = min(adapted.sites, key=lambda site: site.width)
    if not 1 <= top_k <= narrowest.width:
        raise ValueError(f"top_k={top_k} is out of range: choose 1 to {narrowest.width}, the width of {narrowest.name}")


def _check_images(adapted: AdaptedModel, images: Tensor) -> Tensor:
    """Return `images`; raise `ValueError` for another shape or dtype than the model takes."""
    dtype = next(adapted.model.parameters()).dtype
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images have shape {list(images.shape)}; expected [B, C, H, W] with at least one image")
    if images.dtype != dtype:
        raise ValueError(f"images are {images.dtype} but the model is {dtype}; convert one of them")
    return images
