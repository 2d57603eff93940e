"""Small random models of every supported family."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from torch import nn

from pathprune.models.transformers_vit import TransformersModel

SMALL = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 5}


@dataclass(frozen=True)
class Family:
    """A small timm model and the facts that `adapt` should find."""

    name: str  # name in timm's registry
    args: dict[str, Any] = field(default_factory=dict)
    readout: tuple[int, ...] = ()  # tokens that the head reads; empty if it pools
    has_norm: bool = False  # the MLP has a norm between its layers
    is_scaled: bool = True  # the block adds its scaled MLP output to the residual stream
    num_classes: int = 5

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        return randomise(timm.create_model(self.name, **self.args)).eval()


def randomise(model: nn.Module) -> nn.Module:
    """Randomise every parameter in place: libraries initialise some with zeros, which would hide a missing step."""
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in name and parameter.ndim == 1 else 0.0, std=0.2)
    return model


def _vit(
    name: str, readout: tuple[int, ...] = (0,), *, has_norm: bool = False, is_scaled: bool = True, **args: Any
) -> Family:
    return Family(name, SMALL | args, readout, has_norm, is_scaled)


# arguments of the hierarchical families, with other names than in SMALL
_SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "depths": (1, 2), "embed_dim": 24, "num_heads": (2, 2)}
_HIERA = {
    "img_size": (32, 32),
    "stages": (1, 2),
    "q_pool": 1,
    "mask_unit_size": (4, 4),
    "mask_unit_attn": (True, False),
}
_HIERA |= {"embed_dim": 24, "num_heads": 2, "num_classes": 5}

FAMILIES = {
    "vit": _vit("vit_tiny_patch16_224"),
    "vit-one-block": _vit("vit_tiny_patch16_224", depth=1),
    "vit-average": _vit("vit_tiny_patch16_224", (), global_pool="avg", class_token=False),
    "vit-average-beside-class-token": _vit("vit_tiny_patch16_224", (), global_pool="avg"),
    "vit-attention-pooling": _vit("vit_base_patch16_siglip_224", ()),
    "vit-so400m": _vit("vit_so400m_patch14_siglip_224", ()),
    "vit-clip": _vit("vit_base_patch16_clip_224"),
    "vit-clip-quickgelu": _vit("vit_base_patch16_clip_quickgelu_224"),
    "vit-mae": _vit("vit_base_patch16_224.mae", (), global_pool="avg"),
    "vit-registers": _vit("vit_little_patch16_reg4_gap_256", ()),
    "vit-inner-norm": _vit("vit_tiny_patch16_224", has_norm=True, scale_mlp_norm=True),
    "vit-post-norm": _vit("vit_base_patch16_rpn_224", (), is_scaled=False),
    "vit-parallel": _vit("vit_small_patch16_18x2_224", is_scaled=False),
    "vit-parallel-scaling": _vit("vit_base_patch16_xp_224"),
    "vit-parallel-scaling-average": _vit("vit_pwee_patch16_reg1_gap_256", ()),
    "deit": _vit("deit_tiny_patch16_224"),
    "deit-distilled": _vit("deit_tiny_distilled_patch16_224", (0, 1)),
    "deit3": _vit("deit3_small_patch16_224"),
    "dinov2": _vit("vit_small_patch14_dinov2"),
    "dinov2-registers": _vit("vit_small_patch14_reg4_dinov2"),
    "dinov2-giant": _vit("vit_giant_patch14_dinov2"),
    "beit": _vit("beit_base_patch16_224", ()),
    "beitv2": _vit("beitv2_base_patch16_224", ()),
    "beit-shared-positions": _vit(
        "beit_base_patch16_224", (0,), global_pool="token", use_rel_pos_bias=False, use_shared_rel_pos_bias=True
    ),
    "dinov3": _vit("vit_small_patch16_dinov3", ()),
    "dinov3-gated": _vit("vit_small_plus_patch16_dinov3", ()),
    "eva": _vit("eva_giant_patch14_224", ()),
    "eva02-tiny": _vit("eva02_tiny_patch14_224", ()),
    "eva02-base": _vit("eva02_base_patch14_224", (), has_norm=True),
    "eva-mixed-rotary": _vit("vit_small_patch16_rope_mixed_224", (0,)),
    "eva-attention-pooling": _vit("vit_pe_core_tiny_patch16_384", (), attn_pool_num_heads=2),
    "swin": Family("swin_tiny_patch4_window7_224", _SWIN | {"num_classes": 5}),
    "swin-v2": Family("swinv2_tiny_window8_256", _SWIN | {"num_classes": 5}, is_scaled=False),
    "hiera": Family("hiera_tiny_224", _HIERA),
}


@dataclass(frozen=True)
class HfFamily:
    """A small Transformers model and the facts that `adapt` should find."""

    name: str  # name of the class
    config: dict[str, Any]
    readout: tuple[int, ...] = ()
    num_classes: int = 5
    has_norm: bool = False
    is_scaled: bool = True

    def make(self) -> nn.Module:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        kind = getattr(transformers, self.name)
        return TransformersModel(randomise(kind(kind.config_class(**self.config))), data_config=DATA_CONFIG).eval()


DATA_CONFIG = {
    "input_size": (3, 32, 32),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "squash",
}
_HF = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_HF_MLP = _HF | {"intermediate_size": 96}
_LABELS = {"num_labels": 5}
_CLIP = _HF_MLP | {"projection_dim": 7}

HF_FAMILIES = {
    "hf-vit": HfFamily("ViTForImageClassification", _HF_MLP | _LABELS, (0,)),
    "hf-vit-embedding": HfFamily("ViTModel", _HF_MLP, (0,), num_classes=0),
    "hf-deit": HfFamily("DeiTForImageClassification", _HF_MLP | _LABELS, (0,)),
    "hf-deit-distilled": HfFamily("DeiTForImageClassificationWithTeacher", _HF_MLP | _LABELS, (0, 1)),
    "hf-dinov2": HfFamily("Dinov2ForImageClassification", _HF | _LABELS),
    "hf-dinov2-gated": HfFamily("Dinov2ForImageClassification", _HF | _LABELS | {"use_swiglu_ffn": True}),
    "hf-dinov2-registers": HfFamily("Dinov2WithRegistersForImageClassification", _HF | _LABELS),
    "hf-dinov3": HfFamily("DINOv3ViTModel", _HF_MLP, (0,), num_classes=0),
    "hf-dinov3-gated": HfFamily("DINOv3ViTModel", _HF_MLP | {"use_gated_mlp": True}, (0,), num_classes=0),
    "hf-clip": HfFamily("CLIPForImageClassification", {"vision_config": _HF_MLP, **_LABELS}),
    "hf-clip-tower": HfFamily("CLIPVisionModel", _CLIP, (0,), num_classes=0),
    "hf-clip-embedding": HfFamily("CLIPVisionModelWithProjection", _CLIP, (0,), num_classes=0),
    "hf-siglip": HfFamily("SiglipForImageClassification", {"vision_config": _HF_MLP, **_LABELS}),
    "hf-siglip-tower": HfFamily("SiglipVisionModel", _HF_MLP, num_classes=0),
}
FAMILIES |= HF_FAMILIES


class OpenClipTower(nn.Module):
    """A vision tower with the parameter names of OpenCLIP, built from torch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(64))
        self.positional_embedding = nn.Parameter(torch.empty(17, 64))
        self.ln_pre, self.ln_post = nn.LayerNorm(64), nn.LayerNorm(64)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(nn.Module() for _ in range(2))
        for block in self.transformer.resblocks:
            block.ln_1, block.ln_2 = nn.LayerNorm(64), nn.LayerNorm(64)
            block.attn = nn.MultiheadAttention(64, 2, batch_first=True)
            layers = {"c_fc": nn.Linear(64, 256), "gelu": nn.GELU(), "c_proj": nn.Linear(256, 64)}
            block.mlp = nn.Sequential(OrderedDict(layers))
        self.proj = nn.Parameter(torch.empty(64, 7))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(images), 1, -1), patches], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, need_weights=False)[0]
            x = x + block.mlp(block.ln_2(x))
        return self.ln_post(x[:, 0]) @ self.proj
