"""Tests of sequential least squares against a slow implementation of its definition, and against least squares."""

import pytest
import timm
import torch
from torch import Tensor, nn

from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel
from pathprune.pruning import LeastSquares, PrunePlan, Sequential, make_plan, prune
from pathprune.scoring import collect_statistics
from pathprune.scoring.sensitivity import compute_token_weights
from tests.pruning.sequential_reference import fit_sequentially_by_hand, refit_by_hand

PLAIN = {"refit_attention": False, "reconstruct": 0}
TINY = {"img_size": 16, "patch_size": 4, "depth": 3, "embed_dim": 12, "num_heads": 2, "num_classes": 5, "mlp_ratio": 2}


def make_model(scale: str = "random", *, dtype: torch.dtype = torch.float64) -> AdaptedModel:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **TINY, init_values=None if scale == "none" else 0.5)
    model = model.double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    if scale == "uniform":
        for block in model.blocks:
            nn.init.constant_(block.ls2.gamma, 0.4)
    return adapt(model.to(dtype))


def draw_images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def split_batches(images: Tensor, size: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split(size)]


def keep_odd(adapted: AdaptedModel, **settings) -> PrunePlan:
    """Make a plan that keeps the odd columns."""
    scores = {site.name: torch.arange(site.width) % 2 for site in adapted.sites}
    return make_plan(scores, sites=adapted.sites, **settings)


@pytest.mark.parametrize(("scale", "size"), [("random", 1), ("random", 10), ("uniform", 4), ("none", 4)])
def test_the_fit_equals_the_slow_implementation(scale, size):
    adapted, images = make_model(scale), draw_images(10)
    plan = keep_odd(adapted)
    pruned = prune(
        adapted, plan=plan, compensation=Sequential(ridge=0.01, **PLAIN), batches=split_batches(images, size)
    )
    expected = fit_sequentially_by_hand(adapted, plan, images, ridge=0.01)
    for one, other in zip(pruned.sites, expected.sites, strict=True):
        torch.testing.assert_close(one.down.weight, other.down.weight, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(one.down.bias, other.down.bias, rtol=1e-7, atol=1e-9)
        assert one.down.weight.requires_grad
    torch.testing.assert_close(pruned.model(images), expected.model(images), rtol=1e-7, atol=1e-9)


def test_token_weights_equal_the_slow_implementation_with_weights():
    adapted, images = make_model(), draw_images(10)
    plan, batches = keep_odd(adapted), split_batches(images)
    weights = compute_token_weights(adapted, batches, seed=5)
    settings = Sequential(ridge=0.01, token_weights=True, **PLAIN)
    pruned = prune(adapted, plan=plan, compensation=settings, batches=batches, seed=5)
    by_block = [torch.cat([batch[site.name] for batch in weights]) for site in adapted.sites]
    expected = fit_sequentially_by_hand(adapted, plan, images, ridge=0.01, weights=by_block)
    for one, other in zip(pruned.sites, expected.sites, strict=True):
        torch.testing.assert_close(one.down.weight, other.down.weight, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(one.down.bias, other.down.bias, rtol=1e-6, atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("scale", ["random", "none"])
def test_the_attention_is_refitted_behind_the_first_pruned_block(scale):
    adapted, images = make_model(scale), draw_images(10)
    plan = keep_odd(adapted)
    settings = Sequential(ridge=0.01, reconstruct=0)
    pruned = prune(adapted, plan=plan, compensation=settings, batches=split_batches(images))
    for part in ("qkv", "proj"):  # block 0 has nothing to repair
        assert torch.equal(
            pruned.model.get_submodule(f"blocks.0.attn.{part}").weight,
            adapted.model.get_submodule(f"blocks.0.attn.{part}").weight,
        )
    expected = fit_sequentially_by_hand(adapted, keep_odd(adapted, exclude_blocks=[1, 2]), images, ridge=0.01)
    wide = adapted.close_block(0, *adapted.open_block(0, adapted.stem(images)))
    narrow = pruned.close_block(0, *pruned.open_block(0, pruned.stem(images)))
    dense, attn = adapted.model.blocks[1], expected.model.blocks[1].attn
    attn.load_state_dict(dense.attn.state_dict())
    x, x_dense = dense.norm1(narrow), dense.norm1(wide)
    refit_by_hand(attn.qkv, x, dense.attn.qkv(x_dense), ridge=0.01)
    mixed: list[Tensor] = []
    attn.proj.register_forward_pre_hook(lambda _, args: mixed.append(args[0]))
    attn(x)
    m, _ = adapted.open_block(1, wide)
    gamma = dense.ls1.gamma.numpy() if scale == "random" else None
    refit_by_hand(attn.proj, mixed[0], m - narrow, ridge=0.01, gamma=gamma)
    for part in ("qkv", "proj"):
        layer, reference = getattr(pruned.model.blocks[1].attn, part), getattr(attn, part)
        torch.testing.assert_close(layer.weight, reference.weight, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(layer.bias, reference.bias, rtol=1e-7, atol=1e-9)


@torch.no_grad()
def test_refitting_the_attention_brings_the_state_before_the_last_mlp_closer():
    adapted, images = make_model("none"), draw_images(40)
    plan, batches, new = keep_odd(adapted), split_batches(images), draw_images(200, seed=2)

    def last_state(each: AdaptedModel) -> Tensor:
        h = each.stem(new)
        for index in range(2):
            h = each.close_block(index, *each.open_block(index, h))
        return each.open_block(2, h)[0]

    mlps = prune(adapted, plan=plan, compensation=Sequential(ridge=1e-3, **PLAIN), batches=batches)
    both = prune(adapted, plan=plan, compensation=Sequential(ridge=1e-3, reconstruct=0), batches=batches)
    expected = last_state(adapted)
    assert (last_state(both) - expected).norm() < 0.99 * (last_state(mlps) - expected).norm()


@pytest.mark.parametrize("size", [1, 3, 10])
def test_the_batch_size_does_not_matter(size):
    adapted, images = make_model(), draw_images(10)
    once = prune(adapted, plan=keep_odd(adapted), compensation="sequential", batches=split_batches(images, 4))
    again = prune(adapted, plan=keep_odd(adapted), compensation="sequential", batches=split_batches(images, size))
    torch.testing.assert_close(once.model(images), again.model(images), rtol=1e-7, atol=1e-9)


def test_the_first_pruned_block_is_fitted_as_by_least_squares():
    adapted, images = make_model("uniform"), draw_images(10)
    plan = keep_odd(adapted, exclude_blocks=[0])
    statistics = collect_statistics(adapted, split_batches(images), covariance=True)
    plain = prune(adapted, plan=plan, compensation=LeastSquares(ridge=0.01), statistics=statistics)
    fitted = prune(adapted, plan=plan, compensation=Sequential(ridge=0.01, **PLAIN), batches=split_batches(images))
    torch.testing.assert_close(fitted.sites[1].down.weight, plain.sites[1].down.weight, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(fitted.sites[1].down.bias, plain.sites[1].down.bias, rtol=1e-9, atol=1e-10)
    assert (fitted.sites[2].down.weight - plain.sites[2].down.weight).abs().max() > 0.01


@pytest.mark.parametrize("scale", ["random", "none"])
def test_the_output_is_closer_to_the_dense_models_than_with_least_squares(scale):
    adapted, images = make_model(scale), draw_images(40)
    plan = keep_odd(adapted)
    statistics = collect_statistics(adapted, split_batches(images), covariance=True)
    plain = prune(adapted, plan=plan, compensation="least-squares", statistics=statistics)
    fitted = prune(adapted, plan=plan, compensation="sequential", batches=split_batches(images))
    new = draw_images(40, seed=2)
    for each in (images, new):
        expected = adapted.model(each)
        assert (fitted.model(each) - expected).norm() < 0.95 * (plain.model(each) - expected).norm()


def test_removing_neurons_that_depend_linearly_on_kept_ones_changes_nothing():
    adapted = make_model()
    for block in adapted.model.blocks:
        for parameter in (block.mlp.fc1.weight.data, block.mlp.fc1.bias.data):
            parameter[0::2] = parameter[1::2]
            parameter[[0, -1, -2]] = 0.0  # constant and dead neurons
        block.mlp.fc1.bias.data[0] = 2.0
    pruned = prune(
        adapted,
        plan=keep_odd(adapted),
        compensation=Sequential(ridge=1e-12, **PLAIN),
        batches=split_batches(draw_images(10)),
    )
    new = draw_images(4, seed=2)
    torch.testing.assert_close(pruned.model(new), adapted.model(new), rtol=1e-8, atol=1e-8)


def test_blocks_before_the_first_pruned_block_stay_and_later_blocks_are_fitted():
    adapted, images = make_model(), draw_images(10)
    plan = keep_odd(adapted, exclude_blocks=[0, 2])
    pruned = prune(adapted, plan=plan, compensation="sequential", batches=split_batches(images))
    assert torch.equal(pruned.sites[0].down.weight, adapted.sites[0].down.weight)
    assert pruned.sites[2].width == adapted.sites[2].width
    assert not torch.equal(pruned.sites[2].down.weight, adapted.sites[2].down.weight)


def test_a_plan_that_removes_nothing_changes_nothing():
    adapted = make_model()
    pruned = prune(
        adapted,
        plan=keep_odd(adapted, ratio=0.0),
        compensation="sequential",
        batches=split_batches(draw_images(2)),
    )
    for one, other in zip(pruned.sites, adapted.sites, strict=True):
        assert torch.equal(one.down.weight, other.down.weight)
        assert torch.equal(one.down.bias, other.down.bias)


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_outputs_that_barely_reach_the_stream_keep_small_weights(ridge):
    adapted, images = make_model(), draw_images(10)
    for block in adapted.model.blocks:
        block.ls2.gamma.data[3] = 0.0
        block.ls2.gamma.data[4] = 1e-9
    pruned = prune(
        adapted,
        plan=keep_odd(adapted),
        compensation=Sequential(ridge=ridge, **PLAIN),
        batches=split_batches(images),
    )
    for narrow, wide in zip(pruned.sites, adapted.sites, strict=True):
        assert torch.equal(narrow.down.weight[3], wide.down.weight[3, 1::2])
        assert narrow.down.bias[3] == wide.down.bias[3]
        assert narrow.down.weight.isfinite().all()
        if ridge > 0:
            assert (narrow.down.weight[4] - wide.down.weight[4, 1::2]).abs().max() < 1e-3


def test_a_model_without_biases_gets_them_and_can_be_pruned_again():
    adapted, images = make_model(dtype=torch.float32), draw_images(10)
    for block in adapted.model.blocks:
        block.mlp.fc2.bias = None
    once = prune(adapted, plan=keep_odd(adapted), compensation="sequential", batches=split_batches(images))
    twice = prune(once, plan=keep_odd(once), compensation="sequential", batches=split_batches(images))
    assert [site.width for site in twice.sites] == [6, 6, 6]
    assert all(site.down.bias.dtype == torch.float32 for site in twice.sites)
    expected = once.model(images.float())
    shifted = prune(
        once,
        plan=keep_odd(once),
        compensation="mean",
        statistics=collect_statistics(once, split_batches(images)),
    )
    error, shifted_error = ((each.model(images.float()) - expected).norm() for each in (twice, shifted))
    assert error < shifted_error


def test_both_models_keep_their_training_modes_and_gradient_flags():
    adapted = make_model()
    adapted.model.train()
    adapted.model.blocks[0].eval()
    pruned = prune(adapted, plan=keep_odd(adapted), compensation="sequential", batches=split_batches(draw_images(3)))
    for model in (adapted.model, pruned.model):
        assert model.training
        assert not model.blocks[0].training
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_fewer_tokens_than_neurons_give_one_warning(caplog):
    adapted = make_model()
    pruned = prune(
        adapted,
        plan=keep_odd(adapted, ratio=0.25),
        compensation="sequential",
        batches=split_batches(draw_images(1)),
    )  # 18 neurons, 17 tokens
    (record,) = caplog.records
    assert "'sequential': the calibration images do not determine the fit of block 0, 1, 2" in record.getMessage()
    assert all(site.down.weight.abs().max() < 100 for site in pruned.sites)


def test_inputs_and_models_that_cannot_be_fitted_are_named():
    adapted = make_model()
    plan = keep_odd(adapted)
    with pytest.raises(ValueError, match="compensation 'sequential' needs batches of calibration images"):
        prune(adapted, plan=plan, compensation="sequential")
    with pytest.raises(ValueError, match="compensation 'sequential' needs at least one image"):
        prune(adapted, plan=plan, compensation="sequential", batches=[])
    with pytest.raises(ValueError, match="block 0: activations are NaN or infinite"):
        prune(adapted, plan=plan, compensation="sequential", batches=split_batches(draw_images(2) * torch.nan))
    adapted.model.blocks[1].ls2 = nn.LayerNorm(12).double()
    with pytest.raises(ValueError, match=r"needs pre-norm blocks, .*; block 1 of this timm VisionTransformer has"):
        prune(adapted, plan=plan, compensation="sequential", batches=split_batches(draw_images(2)))
