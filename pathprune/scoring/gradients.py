"""Gradients of the cross-entropy for the weights of linear layers, over whole loaders."""

# B images, T tokens, O outputs and I inputs of a layer, K classes

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pathprune.models.adapt import evaluating
from pathprune.models.hooks import attach_hooks
from pathprune.models.seam import AdaptedModel
from pathprune.scoring.batches import Batches


def compute_weight_gradients(
    adapted: AdaptedModel,
    batches: Batches,
    *,
    layers: Sequence[nn.Linear],
    is_squared: bool = False,
) -> dict[nn.Linear, Tensor]:
    """Return the mean over all images of each layer's weight gradient `[O, I]`, squared per image if `is_squared`.

    The model's parameters and their `.grad` do not change. Raises ValueError if there are no images, or if a label is
    not a class of the model.
    """
    parameter = next(adapted.model.parameters())
    num_images = 0
    add = _add_squares if is_squared else _add
    with evaluating(adapted.model), torch.enable_grad(), _accumulate_gradients(layers, add) as totals:
        for images, labels in batches:
            # parameters take no gradients here; images that require them keep the graph
            logits_BK = adapted.model(images.detach().to(parameter, copy=True).requires_grad_())
            _check_labels(labels, num_classes=logits_BK.shape[1])
            # images do not mix, so the gradient of the sum, at one image's tokens, is the gradient of its own loss
            loss = cross_entropy(logits_BK, labels.to(logits_BK.device), reduction="sum")
            torch.autograd.backward(loss)
            num_images += len(images)
    if num_images == 0:
        raise ValueError("gradients need at least one labelled image, but there are no calibration batches")
    return {layer: total / num_images for layer, total in totals.items()}


def _add(total_OI: Tensor, grad_BTO: Tensor, x_BTI: Tensor) -> None:
    total_OI += grad_BTO.flatten(0, -2).T @ x_BTI.flatten(0, -2)


def _add_squares(total_OI: Tensor, grad_BTO: Tensor, x_BTI: Tensor) -> None:
    for grad_TO, x_TI in zip(grad_BTO, x_BTI, strict=True):
        total_OI += (grad_TO.T @ x_TI).square()


@contextmanager
def _accumulate_gradients(
    layers: Sequence[nn.Linear], add: Callable[[Tensor, Tensor, Tensor], None]
) -> Iterator[dict[nn.Linear, Tensor]]:
    """Add the weight gradients of every backward pass inside the context to the yielded totals."""
    totals: dict[nn.Linear, Tensor] = {}

    def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        total, x = totals[layer], args[0].detach()
        output.register_hook(lambda grad: add(total, grad, x))  # type: ignore[no-untyped-call]

    for layer in layers:
        totals[layer] = torch.zeros_like(layer.weight, requires_grad=False)
    with attach_hooks(layer.register_forward_hook(hook) for layer in layers):
        yield totals


def _check_labels(labels: Tensor, *, num_classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        label = low if low < 0 else high
        raise ValueError(f"label {label} is out of range; the model has classes 0 … {num_classes - 1}")
