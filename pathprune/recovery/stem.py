"""The stem of a model, what makes tokens of images, held as it is while the rest is trained.

Pruning leaves it alone, and training harms it first: neighbouring pixels agree, so that a step of an optimizer that
moves every weight alike adds up over a patch. Holding it steadies the training of transformers (arXiv 2104.02057).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from pathprune.models.adapt import adapt, evaluating


def stem_parameters(model: nn.Module, *, input_size: Sequence[int]) -> list[nn.Parameter]:
    """Parameters that the states entering the first block depend on, for images of `input_size` `[C, H, W]`.

    Raises `UnsupportedModelError` for a model whose blocks are not found.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model), torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_(True)
        h_BTD = adapt(model, check=False).stem(torch.zeros(1, *input_size).to(parameters[0]))
        gradients = torch.autograd.grad(h_BTD.sum(), parameters, allow_unused=True)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


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
