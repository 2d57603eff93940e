"""Mining benchmark: the published implementation locates the same paths, and FLOPs are counted correctly."""

import timm
import torch
from mining import count_flops, locate_published_paths
from torch import nn

from pathprune.mining import locate_paths
from pathprune.models.adapt import adapt


def test_the_published_implementation_locates_the_same_paths():
    torch.manual_seed(0)
    args = {"img_size": 16, "patch_size": 8, "depth": 3, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", **args)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    adapted = adapt(model.double().eval())
    images, targets = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 4, 2, 2])
    expected = locate_paths(adapted, images, targets, rule="left-riemann", nodes=6).paths.squeeze(-1)
    assert torch.equal(locate_published_paths(adapted, images, targets, nodes=6), expected)


def test_flops_of_forward_and_backward_products_are_counted():
    linear, x = nn.Linear(5, 7, bias=False), torch.randn(3, 5, requires_grad=True)
    assert count_flops(lambda: linear(x)) == 2 * 3 * 5 * 7
    linear.weight.requires_grad_(False)
    assert count_flops(lambda: torch.autograd.grad(linear(x).sum(), x)) == 2 * 2 * 3 * 5 * 7
