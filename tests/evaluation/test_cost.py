"""Tests of parameters and multiply-accumulates against hand counts."""

import pytest
import timm
import torch
from torch import nn

from pathprune.evaluation import count_macs, count_params, mlp_mac_share, neuron_cost, size_on_disk
from pathprune.models.adapt import adapt
from pathprune.pruning import apply_plan, make_plan

D, PATCH, SIZE, DEPTH, HEADS, CLASSES = 24, 8, 32, 3, 2, 5


def make_vit(**args) -> nn.Module:
    sizes = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": D, "depth": DEPTH, "num_heads": HEADS}
    return timm.create_model("vit_tiny_patch16_224", **sizes, num_classes=CLASSES, **args)


def count_by_hand(widths: list[int], *, patches: int = 16, channels: int = 3) -> tuple[int, int]:
    """Return the multiply-accumulates of the whole model and of its MLPs."""
    tokens = patches + 1
    stem = patches * channels * PATCH * PATCH * D
    attention = tokens * D * 3 * D + 2 * tokens * tokens * D + tokens * D * D  # qkv, QK^T and AV, proj
    mlps = sum(2 * tokens * D * width for width in widths)
    return stem + DEPTH * attention + mlps + D * CLASSES, mlps


@pytest.mark.parametrize("fused", [True, False])
def test_macs_of_a_vit_match_hand_counts(fused):
    model = make_vit()
    for block in model.blocks:
        block.attn.fused_attn = fused
    total, mlps = count_by_hand([4 * D] * DEPTH)
    assert count_macs(model, SIZE) == total
    assert mlp_mac_share(model, SIZE) == pytest.approx(mlps / total)


def test_macs_follow_pruned_widths_and_the_image_size():
    model = make_vit(dynamic_img_size=True)
    for block, width in zip(model.blocks, (7, 30, 96), strict=True):
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(D, width), nn.Linear(width, D)
    assert count_macs(model, SIZE) == count_by_hand([7, 30, 96])[0]
    assert count_macs(model, (16, 40)) == count_by_hand([7, 30, 96], patches=10)[0]


def test_macs_do_not_depend_on_mode_or_dtype():
    model = make_vit(in_chans=1).half().train()
    assert count_macs(model, SIZE, num_channels=1) == count_by_hand([4 * D] * DEPTH, channels=1)[0]
    assert model.training


def test_vit_base_has_its_published_size():
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
    assert count_params(model) == 86_567_656
    assert count_macs(model, 224) / 1e9 == pytest.approx(17.56, abs=0.01)
    assert mlp_mac_share(model, 224) == pytest.approx(0.635, abs=0.005)


@pytest.mark.parametrize(
    ("kind", "count"), [("params", lambda m: count_params(m)), ("macs", lambda m: count_macs(m, SIZE))]
)
def test_neuron_cost_is_the_difference_to_a_narrower_model(kind, count):
    adapted = adapt(make_vit())
    cost = neuron_cost(adapted, kind, SIZE)
    by_hand = 2 * D + 1 if kind == "params" else 2 * D * 17  # a row of fc1, its bias, a column of fc2; 17 tokens
    assert cost.per_neuron == {site.name: by_hand for site in adapted.sites}
    assert cost.total == count(adapted.model)
    scores = {site.name: torch.rand(site.width) for site in adapted.sites}
    plan = make_plan(scores, sites=adapted.sites, ratio=0.3, cost=cost, scope="global")
    removed = 1 - count(apply_plan(adapted, plan=plan).model) / cost.total
    assert removed == pytest.approx(0.3, abs=by_hand / cost.total)


def test_shared_parameters_count_once():
    layer = nn.Linear(3, 4)
    assert count_params(nn.Sequential(layer, nn.ReLU(), layer)) == 3 * 4 + 4


def test_size_on_disk_sums_all_files(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b").write_bytes(b"123")
    assert size_on_disk(tmp_path) == 8
    assert size_on_disk(str(tmp_path / "a")) == 5
    with pytest.raises(ValueError, match="does not exist"):
        size_on_disk(tmp_path / "c")
