"""Tests of surgery: equal to masking on every family, changes MLP widths only, leaves the given model unchanged."""

import copy

import pytest
import timm
import torch
import torch_pruning as tp
from timm.layers import GluMlp
from torch import Tensor, nn

from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel
from pathprune.pruning import PrunePlan, apply_plan, make_plan, mask_neurons, prune
from pathprune.scoring import ScoresImportance

TINY = {"img_size": 16, "patch_size": 8, "depth": 3, "embed_dim": 24, "num_heads": 3, "num_classes": 5}

FAMILIES = {
    "vit": ("vit_tiny_patch16_224", {}),
    "layer-scale": ("deit3_small_patch16_224", {"init_values": 0.3}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"init_values": 0.3}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "no-qkv-bias": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "qk-norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "avgpool": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    "other-size": ("vit_tiny_patch16_224", {"img_size": (24, 16), "in_chans": 1, "mlp_ratio": 1.5}),
    "frozen-but-for-the-head": ("vit_tiny_patch16_224", {}),
}
DTYPES = [(torch.float32, 1e-5), (torch.float64, 1e-12)]


def make_model(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> AdaptedModel:
    architecture, args = FAMILIES[name]
    torch.manual_seed(seed)
    model = timm.create_model(architecture, **{**TINY, **args}).to(dtype).eval()
    for parameter in model.parameters():  # timm zeroes biases, which would hide a bias pruned wrongly
        nn.init.normal_(parameter, std=0.2)
    if name == "frozen-but-for-the-head":
        model.requires_grad_(False)
        model.blocks[1].train()
        model.head.requires_grad_(True)
    return adapt(model)


def draw_images(adapted: AdaptedModel) -> Tensor:
    embed = adapted.model.patch_embed
    return torch.randn(2, embed.proj.in_channels, *embed.img_size, dtype=embed.proj.weight.dtype)


def make_random_plan(adapted: AdaptedModel, *, seed: int = 0, **settings) -> PrunePlan:
    generator = torch.Generator().manual_seed(seed)
    scores = {site.name: torch.rand(site.width, generator=generator) for site in adapted.sites}
    return make_plan(scores, sites=adapted.sites, **settings)


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_only_mlps_narrowed(dense: dict[str, Tensor], pruned: dict[str, Tensor], plan: PrunePlan) -> None:
    assert dense.keys() == pruned.keys()
    expected = dict(dense)
    for name, kept in plan.kept.items():
        mlp = name.removesuffix(".fc2")
        expected[f"{mlp}.fc1.weight"] = dense[f"{mlp}.fc1.weight"][kept]
        expected[f"{mlp}.fc1.bias"] = dense[f"{mlp}.fc1.bias"][kept]
        expected[f"{mlp}.fc2.weight"] = dense[f"{mlp}.fc2.weight"][:, kept]
    for name, tensor in expected.items():
        assert torch.equal(pruned[name], tensor), name


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("name", FAMILIES)
def test_pruned_equals_masked_and_only_mlps_are_narrowed(name, scope, dtype, tolerance):
    adapted = make_model(name, dtype=dtype)
    before = copy_state(adapted.model)
    images = draw_images(adapted)
    plan = make_random_plan(adapted, ratio=0.6, scope=scope)
    pruned = apply_plan(adapted, plan=plan)
    with torch.no_grad(), mask_neurons(adapted, plan=plan):
        expected = adapted.model(images)
    torch.testing.assert_close(pruned.model(images), expected, rtol=tolerance, atol=tolerance)
    assert (adapted.model(images) - expected).abs().max() > 1e-3  # the mask is gone, and had an effect
    assert_only_mlps_narrowed(before, pruned.model.state_dict(), plan)
    assert [site.width for site in pruned.sites] == [len(kept) for kept in plan.kept.values()]
    assert all(torch.equal(tensor, before[key]) for key, tensor in adapted.model.state_dict().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_model_is_pruned_again(name):
    adapted = make_model(name)
    images = draw_images(adapted)
    once = prune(adapted, plan=make_random_plan(adapted, ratio=0.4, scope="global"))
    assert len({site.width for site in once.sites}) > 1
    plan = make_random_plan(once, seed=1, ratio=0.5)
    twice = prune(once, plan=plan)
    with mask_neurons(once, plan=plan):
        expected = once.model(images)
    torch.testing.assert_close(twice.model(images), expected, rtol=1e-12, atol=1e-12)
    assert_only_mlps_narrowed(once.model.state_dict(), twice.model.state_dict(), plan)


def test_modes_gradient_flags_and_hooks_survive():
    adapted = make_model("frozen-but-for-the-head")
    pruned = apply_plan(adapted, plan=make_random_plan(adapted))
    for module, original in zip(pruned.model.modules(), adapted.model.modules(), strict=True):
        assert module.training == original.training
        assert len(module._forward_hooks) == len(original._forward_hooks) == 0
    originals = dict(adapted.model.named_parameters())
    for name, parameter in pruned.model.named_parameters():
        assert parameter.requires_grad == originals[name].requires_grad
        assert parameter.grad is None


def test_surgery_works_without_gradients():
    adapted = make_model("vit")
    plan = make_random_plan(adapted)
    with torch.no_grad():
        pruned = apply_plan(adapted, plan=plan)
    assert_only_mlps_narrowed(adapted.model.state_dict(), pruned.model.state_dict(), plan)


def test_a_plan_that_removes_nothing_gives_the_same_model():
    adapted = make_model("vit")
    pruned = apply_plan(adapted, plan=make_random_plan(adapted, ratio=0.0))
    assert pruned.model is not adapted.model
    assert all(torch.equal(a, b) for a, b in zip(pruned.model.parameters(), adapted.model.parameters(), strict=True))


def test_a_plan_for_another_width_is_refused():
    adapted = make_model("vit")
    plan = make_random_plan(adapted)
    narrower = apply_plan(adapted, plan=plan)
    with pytest.raises(ValueError, match=r"the plan is for widths .* make a plan for this model"):
        apply_plan(narrower, plan=plan)
    with pytest.raises(ValueError, match="make a plan for this model"), mask_neurons(narrower, plan=plan):
        pass


def test_an_inner_norm_added_after_adapt_is_narrowed_with_the_neurons(caplog):
    adapted = make_model("vit")
    norm = nn.LayerNorm(96).double()
    nn.init.normal_(norm.weight)
    adapted.model.blocks[1].mlp.norm = norm  # after adapt()
    plan = make_random_plan(adapted)
    pruned = apply_plan(adapted, plan=plan)
    assert "1 pruned MLPs have an inner norm" in caplog.text
    narrow = pruned.model.blocks[1].mlp.norm
    assert narrow.normalized_shape == (48,)
    assert torch.equal(narrow.weight, norm.weight[plan.kept["blocks.1.mlp.fc2"]])
    assert pruned.model(draw_images(adapted)).isfinite().all()


@pytest.mark.parametrize("gate_last", [False, True])
@pytest.mark.parametrize("act", [nn.SiLU, nn.GELU])
def test_both_halves_of_a_packed_gate_are_pruned_together(gate_last, act):
    adapted = make_model("vit")
    mlp = GluMlp(24, 96, 24, act_layer=act, gate_last=gate_last).double()  # fc1: gate and value of 48 neurons
    dense = copy_state(mlp)
    adapted.model.blocks[1].mlp = mlp
    adapted = adapted.refresh()
    images = draw_images(adapted)
    plan = make_random_plan(adapted)
    pruned = apply_plan(adapted, plan=plan)
    with mask_neurons(adapted, plan=plan):
        expected = adapted.model(images)
    torch.testing.assert_close(pruned.model(images), expected, rtol=1e-12, atol=1e-12)
    kept = plan.kept["blocks.1.mlp.fc2"]
    packed = torch.cat([kept, 48 + kept])
    assert torch.equal(pruned.model.blocks[1].mlp.fc1.weight, dense["fc1.weight"][packed])
    assert torch.equal(pruned.model.blocks[1].mlp.fc1.bias, dense["fc1.bias"][packed])
    assert pruned.model.blocks[1].mlp.fc1.out_features == 48


def test_a_fused_projection_loses_its_neurons_and_keeps_the_attention():
    model = timm.create_model("vit_base_patch16_xp_224", **TINY).double().eval()
    adapted = adapt(model)
    plan = make_random_plan(adapted)
    pruned = apply_plan(adapted, plan=plan)
    dense, narrow = model.blocks[0], pruned.model.blocks[0]
    kept = plan.kept["blocks.0.mlp_out_proj"]
    assert narrow.in_split == [48, 24, 24, 24]
    assert dense.in_split == [96, 24, 24, 24]
    assert torch.equal(narrow.in_proj.weight, dense.in_proj.weight[torch.cat([kept, torch.arange(96, 168)])])
    assert torch.equal(narrow.mlp_bias, dense.mlp_bias[kept])


def test_a_model_of_unknown_image_size_is_pruned():
    adapted = make_model("vit")
    adapted.model.patch_embed.img_size = None
    adapted.model.patch_embed.strict_img_size = False
    assert apply_plan(adapted, plan=make_random_plan(adapted)).sites[0].width == 48


@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
def test_torch_prunings_own_pruner_changes_mlp_widths_only_with_scores_importance():
    adapted = make_model("distilled")
    dense = copy.deepcopy(adapted.model.state_dict())
    images = draw_images(adapted)
    generator = torch.Generator().manual_seed(0)
    scores = {site.name: torch.rand(site.width, generator=generator) for site in adapted.sites}
    plan = make_plan(scores, sites=adapted.sites, ratio=0.5, scope="global")
    pruner = tp.pruner.BasePruner(
        adapted.model,
        images,
        importance=ScoresImportance(scores, adapted=adapted),
        global_pruning=True,
        pruning_ratio=0.5,
    )
    pruner.step()
    assert_only_mlps_narrowed(dense, adapted.model.state_dict(), plan)
    down = adapted.sites[0].down
    group = pruner.DG.get_pruning_group(down, tp.prune_linear_in_channels, list(range(down.in_features)))
    with pytest.raises(ValueError, match="the model was pruned after scoring; score it again"):
        pruner.importance(group)
