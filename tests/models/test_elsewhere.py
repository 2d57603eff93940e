"""Pruned checkpoints of every family load without pathprune: in timm, in Transformers, and by the guide's loader."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from pathprune.export import Format, export_model
from pathprune.models.adapt import adapt
from pathprune.models.checkpoint import save_pruned
from pathprune.models.graph import narrow_mlp
from pathprune.models.pruned_config import read_native_keys
from pathprune.models.seam import AdaptedModel
from pathprune.models.transformers_vit import TransformersModel
from pathprune.pruning import make_plan, prune
from tests.families import FAMILIES, HF_FAMILIES

TIMM_FAMILIES = [name for name in FAMILIES if name not in HF_FAMILIES]
OTHER_WIDTHS = {"hf-siglip-tower"}  # its head has an MLP with the same `intermediate_size`
OTHER_MLPS = {"vit-attention-pooling", "vit-so400m"}  # the head has an MLP with the same `mlp_ratio`
FUSED = {"vit-parallel-scaling", "vit-parallel-scaling-average"}  # the block stores the widths of its parts

GUIDE = Path(__file__).parents[2] / "docs" / "deploying.md"


@pytest.fixture(scope="module")
def plain_load() -> Callable[[Path], nn.Module]:
    """Return the loader printed in the deployment guide."""
    (code,) = re.findall(r"```python\n([^`]*?\ndef load\(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "deploying.md", "exec"), names)
    return names["load"]


def prune_half(name: str) -> AdaptedModel:
    adapted = adapt(FAMILIES[name].make())
    scores = {site.name: torch.rand(site.width, generator=torch.Generator().manual_seed(2)) for site in adapted.sites}
    return prune(adapted, plan=make_plan(scores, sites=adapted.sites, ratio=0.5))


def draw_images(adapted: AdaptedModel) -> Tensor:
    return torch.randn(4, *adapted.input_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", TIMM_FAMILIES)
@torch.no_grad()
def test_every_timm_family_loads_without_pathprune(
    name: str, tmp_path: Path, plain_load: Callable[[Path], nn.Module]
) -> None:
    pruned = prune_half(name)
    images = draw_images(pruned)
    expected = pruned.model(images)
    folder = save_pruned(pruned.model, tmp_path / "pruned")
    assert bool(read_native_keys(folder)) == (name not in OTHER_MLPS)
    if name not in OTHER_MLPS:
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        torch.testing.assert_close(again(images), expected, rtol=1e-6, atol=1e-6)
    if name in FUSED:
        with pytest.raises(RuntimeError, match="split"):  # an error, not wrong logits
            plain_load(folder)(images)
    else:
        torch.testing.assert_close(plain_load(folder)(images), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", HF_FAMILIES)
@torch.no_grad()
def test_every_transformers_family_loads_without_pathprune(
    name: str, tmp_path: Path, plain_load: Callable[[Path], nn.Module]
) -> None:
    transformers = pytest.importorskip("transformers")
    pruned = prune_half(name)
    images = draw_images(pruned)
    expected = pruned.model(images)
    folder = save_pruned(pruned.model, tmp_path / "pruned")
    again = TransformersModel(plain_load(folder))
    torch.testing.assert_close(again(images), expected, rtol=1e-6, atol=1e-6)

    kind = HF_FAMILIES[name].name
    card = (folder / "README.md").read_text(encoding="utf-8")
    loading = f"transformers.{kind}.from_pretrained"
    if name in OTHER_WIDTHS:
        assert read_native_keys(folder) == {}
        assert loading not in card
        return
    assert loading in card
    loaders = [getattr(transformers, kind)]
    loaders += [transformers.AutoModelForImageClassification] if pruned.num_classes else []
    for loader in loaders:
        alone, info = loader.from_pretrained(folder, output_loading_info=True)
        assert type(alone).__name__ == kind
        unread = {key for key in info.pop("unexpected_keys") if not key.startswith("vision_model.head.")}
        assert not unread
        assert not any(info.values())
        torch.testing.assert_close(TransformersModel(alone.eval())(images), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "width", "loads"),
    [
        ("hf-vit", 41, True),
        ("hf-dinov2", 72, True),  # three times the hidden size
        ("hf-dinov2", 60, False),
        ("hf-dinov2-gated", 48, True),
        ("hf-dinov2-gated", 40, False),
    ],
)
def test_transformers_loads_the_widths_that_its_config_can_express(
    name: str, width: int, loads: bool, tmp_path: Path, plain_load: Callable[[Path], nn.Module]
) -> None:
    adapted = adapt(HF_FAMILIES[name].make())
    for site in adapted.sites:
        narrow_mlp(site, width)
    folder = save_pruned(adapted.model, tmp_path / "pruned")
    assert bool(read_native_keys(folder)) == loads
    images = draw_images(adapted)
    with torch.no_grad():
        expected = adapted.model(images)
        torch.testing.assert_close(TransformersModel(plain_load(folder))(images), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_same_logits_in_onnx(name: str, tmp_path: Path) -> None:
    pruned = prune_half(name)
    images = draw_images(pruned)
    (found,) = export_model(
        pruned.model, tmp_path / "out", formats=[Format("onnx")], images=images, batch_size=2, repeats=1
    )
    with torch.no_grad():
        scale = float(pruned.model(images).abs().max())
    assert found.agreement == 1.0
    assert found.max_logit_difference <= 1e-4 * scale
