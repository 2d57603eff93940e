"""Parameters to leave out of training: those of the stem, and those that the loss does not depend on.

The stem turns images into tokens. Pruning does not change it, and training damages it first: neighbouring pixels are
alike, so that the equal steps of an adaptive optimizer add up over a patch. A frozen stem makes the training of
transformers more stable (arXiv 2104.02057).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pathprune.models.adapt import adapt, evaluating
from pathprune.recovery.outputs import OutputModel


def find_stem_parameters(model: nn.Module, *, input_size: Sequence[int]) -> list[nn.Parameter]:
    """Return the parameters that the input of the first block depends on, for images of `input_size` `[C, H, W]`.

    Raises `UnsupportedModelError` for a model without known blocks.
    """
    stem = adapt(model, check=False).stem
    used, _ = _split_by_use(model, lambda images: [stem(images)], input_size)
    return used


def find_unused_parameters(
    model: nn.Module, *, input_size: Sequence[int], logits: bool, states: bool
) -> list[nn.Parameter]:
    """Return the parameters without influence on the logits (if `logits`) or the block states (if `states`).

    Examples are a mask token, or the head if only states are distilled. In a training of several processes, every
    process would wait for the gradients of these parameters forever.
    """

    def outputs(images: Tensor) -> list[Tensor]:
        output = OutputModel(model, states=states)(images)
        return [*output.states, *([output.logits] if logits else [])]

    _, unused = _split_by_use(model, outputs, input_size)
    return unused


def _split_by_use(
    model: nn.Module, outputs: Callable[[Tensor], list[Tensor]], input_size: Sequence[int]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trainable parameters that the outputs for an image depend on, and the other trainable ones."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model), torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_(True)  # evaluating() switches gradients off
        image = torch.zeros(1, *input_size).to(parameters[0])
        total = torch.stack([output.sum() for output in outputs(image)]).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    pairs = list(zip(parameters, gradients, strict=True))
    used = [parameter for parameter, gradient in pairs if gradient is not None]
    return used, [parameter for parameter, gradient in pairs if gradient is None]


@contextmanager
def freeze(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Set `requires_grad` of the parameters to False inside the block, and to True after it."""
    frozen = list(parameters)
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
