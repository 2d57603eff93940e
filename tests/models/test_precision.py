"""Mixed precision: lower precision within passes only, and an unchanged model afterwards."""

import pytest
import timm
import torch
from torch import nn

from pathprune.models.precision import mixed_precision

TINY = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 5}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **TINY).eval()


def test_passes_equal_autocast_and_the_model_is_restored():
    model, images = make_model(), torch.randn(2, 3, 16, 16)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    parameters = list(model.parameters())
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            lower = model(images)
        with mixed_precision(model, torch.bfloat16) as passes:
            assert model.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
            assert model.blocks[0].norm1.weight.dtype == torch.float32
            with passes():
                ours = model(images)
    assert not torch.allclose(exact, lower.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours, lower, rtol=0.02, atol=0.02)
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name])


def test_the_model_is_restored_after_an_error():
    model = make_model()
    weight = model.head.weight.clone()
    with pytest.raises(RuntimeError, match="stop"), mixed_precision(model, torch.bfloat16):
        raise RuntimeError("stop")
    assert torch.equal(model.head.weight, weight)


def test_without_a_precision_nothing_changes():
    model, images = make_model(), torch.randn(2, 3, 16, 16)
    with mixed_precision(model, None) as passes, passes(), torch.no_grad():
        assert torch.equal(model(images), model(images.clone()))
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
