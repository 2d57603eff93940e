"""Parameters that are not trained: the stem's, in every family, and those that no part of the loss depends on."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from torch import nn

from pathprune.models.adapt import adapt
from pathprune.recovery.untrained import held, stem_parameters, unused_parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stem_is_what_changes_the_states_that_enter_the_first_block(family: str) -> None:
    model = FAMILIES[family].make().train()
    size = adapt(model, check=False).input_size or (3, 32, 32)
    stem = {id(parameter) for parameter in stem_parameters(model, input_size=size)}
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


@pytest.mark.parametrize("learned", [("logits",), ("states",), ("logits", "states")])
def test_unused_parameters_are_those_that_get_no_gradient(learned: tuple[str, ...]) -> None:
    model = FAMILIES["vit"].make().train()
    model.mask_token = nn.Parameter(torch.zeros(3))
    chosen = {"logits": "logits" in learned, "states": "states" in learned}
    unused = unused_parameters(model, input_size=adapt(model, check=False).input_size, **chosen)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    names = {name for name, parameter in model.named_parameters() if any(parameter is each for each in unused)}
    answers_only = {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert names == {"mask_token"} | (set() if "logits" in learned else answers_only)


def test_held_parameters_get_no_gradients_and_are_let_go() -> None:
    layer = nn.Linear(2, 2)
    with held([layer.bias]):
        layer(torch.ones(1, 2)).sum().backward()
    assert layer.bias.grad is None
    assert layer.weight.grad is not None
    assert layer.bias.requires_grad
