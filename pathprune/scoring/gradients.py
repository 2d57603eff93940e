"""Gradients of the cross-entropy over a whole loader, for the weights of a few linear layers.

# B images, T tokens, O outputs, I inputs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pathprune.models.adapt import evaluating
from pathprune.models.hooks import attach_hooks
from pathprune.models.seam import AdaptedModel


def weight_gradients(
    adapted: AdaptedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    layers: Sequence[nn.Linear],
    squared: bool = False,
) -> dict[nn.Linear, Tensor]:
    """Mean over all images of each layer's weight gradient `[O, I]`; of its square, image by image, if `squared`.

    The model's parameters and their `.grad` are not touched. Raises ValueError if there are no images, or on a label
    that the model has no class for.
    """
    parameter = next(adapted.model.parameters())
    num_images = 0
    add = _add_squares if squared else _add
    with evaluating(adapted.model), torch.enable_grad(), _accumulating(layers, add) as totals:
        for images, labels in batches:
            # a leaf that asks for gradients keeps the graph alive although no parameter does
            logits_BK = adapted.model(images.detach().to(parameter, copy=True).requires_grad_())
            _check_labels(labels, num_classes=logits_BK.shape[1])
            # images do not mix, so the gradient of the sum, at one image's rows, is the gradient of that image's loss
            loss = cross_entropy(logits_BK, labels.to(logits_BK.device), reduction="sum")
            torch.autograd.backward(loss)
            num_images += len(images)
    if num_images == 0:
        raise ValueError("gradients need at least one labelled image; there are no calibration batches")
    return {layer: total / num_images for layer, total in totals.items()}


def _add(total_OI: Tensor, grad_BTO: Tensor, x_BTI: Tensor) -> None:
    total_OI += grad_BTO.flatten(0, -2).T @ x_BTI.flatten(0, -2)


def _add_squares(total_OI: Tensor, grad_BTO: Tensor, x_BTI: Tensor) -> None:
    for grad_TO, x_TI in zip(grad_BTO, x_BTI, strict=True):
        total_OI += (grad_TO.T @ x_TI).square()


@contextmanager
def _accumulating(
    layers: Sequence[nn.Linear], add: Callable[[Tensor, Tensor, Tensor], None]
) -> Iterator[dict[nn.Linear, Tensor]]:
    """While open, every backward through `layers` adds its weight gradients to the yielded totals."""
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
        wrong = low if low < 0 else high
        raise ValueError(f"label {wrong} is out of range: the model has classes 0 … {num_classes - 1}")
