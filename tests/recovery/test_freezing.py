"""Parameters left out of training: the stem's, in every family, and those that the loss does not depend on."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from torch import nn

from pathprune.models.adapt import adapt
from pathprune.recovery.freezing import find_stem_parameters, find_unused_parameters, freeze


@pytest.mark.parametrize("family", FAMILIES)
def test_stem_parameters_are_those_that_change_the_input_of_the_first_block(family: str) -> None:
    model = FAMILIES[family].make().train()
    size = adapt(model, check=False).input_size or (3, 32, 32)
    stem = {id(parameter) for parameter in find_stem_parameters(model, input_size=size)}
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.eval()
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = adapt(model, check=False).stem(images)
        for name, parameter in model.named_parameters():
            kept = parameter.clone()
            parameter.add_(torch.randn_like(parameter))
            changed = not torch.equal(adapt(model, check=False).stem(images), before)
            assert changed == (id(parameter) in stem and parameter.numel() > 0), name
            parameter.copy_(kept)


@pytest.mark.parametrize("outputs", [("logits",), ("states",), ("logits", "states")])
def test_parameters_without_influence_on_the_loss_are_unused(outputs: tuple[str, ...]) -> None:
    model = FAMILIES["vit"].make().train()
    model.mask_token = nn.Parameter(torch.zeros(3))
    terms = {name: name in outputs for name in ("logits", "states")}
    unused = find_unused_parameters(model, input_size=adapt(model, check=False).input_size, **terms)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    names = {name for name, parameter in model.named_parameters() if any(parameter is each for each in unused)}
    only_for_logits = {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert names == {"mask_token"} | (set() if "logits" in outputs else only_for_logits)


def test_frozen_parameters_get_no_gradient_until_the_block_ends() -> None:
    layer = nn.Linear(2, 2)
    with freeze([layer.bias]):
        layer(torch.ones(1, 2)).sum().backward()
    assert layer.bias.grad is None
    assert layer.weight.grad is not None
    assert layer.bias.requires_grad
