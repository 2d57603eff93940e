"""Tiny Vision Transformers with uneven class probabilities, and images for them."""

import timm
import torch
from torch import nn

VIT = "vit_tiny_patch16_224"
ARGS = {"img_size": 16, "patch_size": 8, "depth": 3, "embed_dim": 24, "num_heads": 2, "mlp_ratio": 2, "num_classes": 5}


def build_vit(architecture: str = VIT, *, widths: tuple[int, ...] = (), std: float = 0.3, **args) -> nn.Module:
    """Return a float64 model in eval mode, with 4 patches and, if given, MLPs of these `widths`."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, **{**ARGS, **args})
    for block, width in zip(model.blocks, widths, strict=False):
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(24, width), nn.Linear(width, 24)
    for parameter in model.parameters():  # timm's own initialisation gives nearly the same probability to every class
        nn.init.normal_(parameter, std=std)
    return model.double().eval()


def draw_images(number: int = 3) -> torch.Tensor:
    """Return random float64 images, always the same."""
    return torch.randn(number, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
