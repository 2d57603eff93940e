"""Forward-mode derivatives: single layers against torch's own, whole models against finite differences."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from pathprune.mining.forward_mode import jvp

# torch compiles its forward-mode formulas with torch.jit on first use
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

TINY = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 5}


def differentiate_twice(function, *primals):
    """Return value and derivative, in a random direction, by this package and by torch."""
    generator = torch.Generator().manual_seed(1)
    tangents = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in primals]
    with sdpa_kernel(SDPBackend.MATH):
        expected = torch.func.jvp(function, primals, tuple(tangents))
    return jvp(function, primals, tangents), expected


def random(*shape):
    """Return float64 normal numbers, the same for every call with this shape."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


WEIGHT, BIAS = random(7, 6), random(7)
MASK = torch.tensor([[True, False, True], [True, True, True], [False, True, True]])
LAYERS = {
    "linear": (lambda x: functional.linear(x, WEIGHT, BIAS), (random(2, 3, 6),)),
    "linear without bias": (lambda x: functional.linear(x, WEIGHT), (random(2, 3, 6),)),
    "linear with a varying weight": (functional.linear, (random(2, 3, 6), WEIGHT, BIAS)),
    "gelu": (functional.gelu, (random(2, 6),)),
    "gelu by tanh": (lambda x: functional.gelu(x, approximate="tanh"), (random(2, 6),)),
    "layer norm": (lambda x: functional.layer_norm(x, (6,), WEIGHT[0], BIAS[:6], 1e-6), (random(2, 3, 6),)),
    "layer norm without weights": (lambda x: functional.layer_norm(x, (3, 6)), (random(2, 3, 6),)),
    "layer norm with a varying weight": (lambda x, w: functional.layer_norm(x, (6,), w), (random(2, 3, 6), WEIGHT[0])),
    "attention": (
        functional.scaled_dot_product_attention,
        (random(2, 2, 3, 4), random(2, 2, 5, 4), random(2, 2, 5, 4)),
    ),
    "attention, scaled": (
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, scale=0.3),
        (random(2, 3, 4), random(2, 5, 4), random(2, 5, 4)),
    ),
    "attention to one query": (
        lambda q: functional.scaled_dot_product_attention(q, random(2, 5, 4), random(2, 5, 4)),
        (random(2, 3, 4),),
    ),
    "attention, masked": (
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, attn_mask=MASK),
        (random(2, 3, 4), random(2, 3, 4), random(2, 3, 4)),
    ),
    "attention, causal": (
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        (random(2, 3, 4), random(2, 3, 4), random(2, 3, 4)),
    ),
    "silu, without a rule": (functional.silu, (random(2, 6),)),
    "a constant result": (lambda x: torch.ones(3) + 0 * x.detach().sum(), (random(2),)),
    "in place": (lambda x: (x + 1).mul_(2).add_(x), (random(2, 3),)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_agree_with_torch(name):
    function, primals = LAYERS[name]
    found, expected = differentiate_twice(function, *primals)
    for found_part, expected_part in zip(found, expected, strict=True):
        torch.testing.assert_close(found_part, expected_part, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("architecture", "args"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"qk_norm": True, "init_values": 0.3}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("eva02_tiny_patch14_224", {"mlp_ratio": 2}),
    ],
)
def test_models_agree_with_finite_differences(architecture, args):
    torch.manual_seed(0)
    model = timm.create_model(architecture, **{**TINY, **args}).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    images, direction = random(2, 3, 16, 16), random(2, 3, 16, 16).flip(0)
    logits, derivative = jvp(model, (images,), (direction,))
    step = 1e-5
    with torch.no_grad():
        torch.testing.assert_close(logits, model(images), rtol=1e-12, atol=1e-12)
        difference = (model(images + step * direction) - model(images - step * direction)) / (2 * step)
    torch.testing.assert_close(derivative, difference, rtol=1e-6, atol=1e-8)
    assert not logits.requires_grad


def test_a_function_may_return_a_tuple():
    x = random(3)
    values, derivatives = jvp(lambda x, y: (x * y, x + 1), (x, x), (x, torch.ones(3)))
    assert torch.equal(values[0], x**2)
    assert torch.equal(values[1], x + 1)
    torch.testing.assert_close(derivatives[0], x * x + x)
    assert torch.equal(derivatives[1], x)


def test_autocast_lowers_the_precision_of_value_and_derivative():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **TINY).eval()
    images, direction = torch.randn(2, 2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = jvp(model, (images,), (direction,))
    for x, exact in zip(lowered, jvp(model, (images,), (direction,)), strict=True):
        assert x.dtype == torch.bfloat16
        torch.testing.assert_close(x.float(), exact, rtol=0.1, atol=0.02)
        assert not torch.equal(x.float(), exact)
