"""Parameters that training leaves alone: the stem's, held as it is, and those that no part of the loss depends on.

The stem is what makes tokens of images. Pruning leaves it alone, and training harms it first: neighbouring pixels
agree, so that a step of an optimizer that moves every weight alike adds up over a patch. Holding it steadies the
training of transformers (arXiv 2104.02057).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pathprune.models.adapt import adapt, evaluating
from pathprune.recovery.answering import Answering


def stem_parameters(model: nn.Module, *, input_size: Sequence[int]) -> list[nn.Parameter]:
    """Parameters that the states entering the first block depend on, for images of `input_size` `[C, H, W]`.

    Raises `UnsupportedModelError` for a model whose blocks are not found.
    """
    stem = adapt(model, check=False).stem
    return [parameter for parameter, is_used in _used(model, lambda images: [stem(images)], input_size) if is_used]


def unused_parameters(model: nn.Module, *, input_size: Sequence[int], logits: bool, states: bool) -> list[nn.Parameter]:
    """Parameters that neither the logits nor the states after blocks depend on, whichever of them are learned from.

    A mask token is one, or the head where states alone are learned; processes that train together wait for their
    gradients in vain.
    """

    def learned(images: Tensor) -> list[Tensor]:
        answer = Answering(model, states=states)(images)
        return [*answer.states, *([answer.logits] if logits else [])]

    return [parameter for parameter, is_used in _used(model, learned, input_size) if not is_used]


def _used(
    model: nn.Module, outputs: Callable[[Tensor], list[Tensor]], input_size: Sequence[int]
) -> list[tuple[nn.Parameter, bool]]:
    """The model's trainable parameters, and whether the outputs for an image depend on each."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model), torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_(True)
        total = torch.stack([each.sum() for each in outputs(torch.zeros(1, *input_size).to(parameters[0]))]).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [(parameter, gradient is not None) for parameter, gradient in zip(parameters, gradients, strict=True)]


@contextmanager
def held(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Keep (in place) these parameters out of training while open."""
    frozen = list(parameters)
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
