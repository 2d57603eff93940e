"""Adapted models: blocks compose to the model, unsupported models are refused with a reason, modes are restored."""

import copy
from functools import partial

import pytest
import timm
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import nn

from pathprune.models.adapt import adapt, evaluating, find_device
from pathprune.models.hooks import attach_hooks
from pathprune.models.seam import AdaptedModel, UnsupportedModelError
from tests.families import FAMILIES, SMALL, OpenClipTower, randomise


def make_vit(**args: object) -> nn.Module:
    torch.manual_seed(0)
    return randomise(timm.create_model("vit_tiny_patch16_224", **SMALL | args)).double().eval()


def _module(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def draw_images(adapted: AdaptedModel, count: int = 2) -> torch.Tensor:
    return torch.randn(count, *adapted.input_size, dtype=torch.float64)


def run_blocks(adapted: AdaptedModel, h: torch.Tensor, *, start: int = 0) -> torch.Tensor:
    for index in range(start, len(adapted.sites)):
        h = adapted.close_block(index, *adapted.open_block(index, h))
    return adapted.head(h)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_blocks_compose_to_the_model(name):
    model = FAMILIES[name].make().double()
    adapted = adapt(model)
    images = draw_images(adapted, 3)
    torch.testing.assert_close(run_blocks(adapted, adapted.stem(images)), model(images), rtol=1e-10, atol=1e-10)
    assert isinstance(adapted, AdaptedModel)
    assert adapted.num_classes == FAMILIES[name].num_classes


@pytest.mark.parametrize("name", FAMILIES)
def test_running_from_a_block_runs_it_and_all_later_ones(name):
    adapted = adapt(FAMILIES[name].make().double())
    h = adapted.stem(draw_images(adapted))
    for index in range(len(adapted.sites)):
        torch.testing.assert_close(adapted.head(adapted.run_from(index, h)), run_blocks(adapted, h, start=index))
        closed = adapted.close_block(index, *adapted.open_block(index, h))
        assert torch.equal(adapted.run_block(index, h), closed)
        h = closed
    assert adapted.run_from(len(adapted.sites), h) is h


@pytest.mark.parametrize("name", FAMILIES)
def test_readout_lists_the_tokens_that_the_head_reads(name):
    adapted = adapt(FAMILIES[name].make().double())
    assert adapted.readout == FAMILIES[name].readout
    h = adapted.run_from(0, adapted.stem(draw_images(adapted, 1))).detach().requires_grad_()
    adapted.head(h).sum().backward()
    read = tuple(h.grad[0].abs().sum(dim=1).nonzero().flatten().tolist())
    assert read == adapted.readout if adapted.readout else len(read) >= h.shape[1] - 5  # all but prefix tokens


class DoubledAttention(Attention):
    def forward(self, x, attn_mask=None, is_causal=False):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "make",
    [
        *[family.make for family in FAMILIES.values()],
        partial(make_vit, qk_norm=True, qkv_bias=False),
        partial(make_vit, scale_attn_norm=True),
        partial(make_vit, attn_layer=DoubledAttention),
        partial(make_vit, attn_drop_rate=0.5),
    ],
    ids=[*FAMILIES, "qk-norm", "attention-norm", "own-attention", "attention-dropout"],
)
def test_a_block_restricted_to_some_tokens_equals_the_whole_block_there(make):
    adapted = adapt(make().double())
    h = adapted.stem(draw_images(adapted))
    tokens = torch.tensor(adapted.readout or (3, 1))
    last = len(adapted.sites) - 1
    for index in range(last):
        h = adapted.run_block(index, h)
    whole = adapted.open_block(last, h)
    alone = adapted.open_block(last, h, tokens)
    for part, expected in zip(alone, whole, strict=True):
        torch.testing.assert_close(part, expected[:, tokens], rtol=1e-10, atol=1e-10)
    if adapted.readout:
        read = adapted.head(adapted.run_block(last, h, tokens))
        torch.testing.assert_close(read, adapted.head(adapted.close_block(last, *whole)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "make",
    [*[family.make for family in FAMILIES.values()], partial(make_vit, attn_layer=DoubledAttention)],
    ids=[*FAMILIES, "own-attention"],
)
@pytest.mark.parametrize("some_tokens", [False, True])
def test_a_block_reads_each_token_by_itself(make, some_tokens):
    adapted = adapt(make().double())
    h = adapted.stem(draw_images(adapted))
    tokens = torch.tensor([0, 2]) if some_tokens else None
    read = adapted.read_block(0, h, tokens)
    one_by_one = torch.cat([adapted.read_block(0, token, tokens) for token in h.split(1, dim=1)], dim=1)
    torch.testing.assert_close(read, one_by_one, rtol=1e-12, atol=1e-12)
    opened = adapted.open_block(0, h, tokens)
    for part, expected in zip(adapted.open_block(0, h, tokens, attention_input=read), opened, strict=True):
        assert torch.equal(part, expected)
    m, _ = adapted.open_block(0, h, tokens, attention_input=read.square())
    assert not torch.allclose(m, opened[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_site_is_the_down_projection_that_reads_its_neurons(name):
    model = FAMILIES[name].make().double()
    adapted = adapt(model)
    assert all(model.get_submodule(site.name) is site.down for site in adapted.sites)
    assert [site.block for site in adapted.sites] == list(range(len(adapted.sites)))
    assert all((site.norm is not None) == FAMILIES[name].has_norm for site in adapted.sites)
    images = draw_images(adapted)
    seen = []
    with attach_hooks(
        site.down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for site in adapted.sites
    ):
        model(images)
    h = adapted.stem(images)
    for index, site in enumerate(adapted.sites):
        m, u = adapted.open_block(index, h)
        assert u.shape == (2, m.shape[1], site.width)
        torch.testing.assert_close(u, seen[index], rtol=1e-10, atol=1e-10)
        h = adapted.close_block(index, m, u)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_block_adds_its_scaled_mlp_output_to_the_stream(name):
    adapted = adapt(FAMILIES[name].make().double())
    scale = adapted.residual_scale(0)
    assert (scale is not None) == FAMILIES[name].is_scaled
    if scale is not None:
        m, u = adapted.open_block(0, adapted.stem(draw_images(adapted)))
        expected = m + scale * adapted.sites[0].down(u)
        torch.testing.assert_close(adapted.close_block(0, m, u), expected, rtol=1e-10, atol=1e-10)


def test_a_block_with_a_norm_after_its_mlp_has_no_residual_scale():
    model = make_vit()
    model.blocks[1].ls2 = nn.LayerNorm(24).double()
    adapted = adapt(model)
    assert adapted.residual_scale(0) is not None
    assert adapted.residual_scale(1) is None


def test_adapt_does_not_change_the_model():
    model = make_vit()
    before = copy.deepcopy(model.state_dict())
    model.train()
    adapt(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_refresh_reads_the_widths_after_surgery():
    model = make_vit()
    adapted = adapt(model)
    mlp = model.blocks[1].mlp
    mlp.fc1, mlp.fc2 = nn.Linear(24, 7).double(), nn.Linear(7, 24).double()
    assert [site.width for site in adapted.sites] == [96, 96]
    assert [site.width for site in adapted.refresh().sites] == [96, 7]


class DistributedDataParallel(nn.Module):
    """A stand-in for torch's wrapper, which needs a process group."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module


class LoraLinear(nn.Linear):
    def __init__(self, *args: int):
        super().__init__(*args)
        self.lora_A = nn.Linear(24, 2)


def with_lora() -> nn.Module:
    model = make_vit()
    model.blocks[0].attn.proj = LoraLinear(24, 24)
    return model


def with_quantised_linear() -> nn.Module:
    class Linear(nn.Linear):
        __module__ = "torch.ao.nn.quantized.dynamic.modules.linear"

    model = make_vit()
    model.blocks[1].mlp.fc1 = Linear(24, 96)
    return model


def with_mlp(mlp: nn.Module) -> nn.Module:
    model = make_vit()
    model.blocks[1].mlp = mlp.double()
    return model


class TwiceTheBlock(Block):
    def forward(self, x, attn_mask=None, is_causal=False):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: timm.create_model("resnet18"), r"ResNet is not supported: .*Supported: timm VisionTransformer"),
        (lambda: nn.Linear(3, 3), r"Linear is not supported: .*Supported: timm VisionTransformer"),
        (
            lambda: with_mlp(timm.layers.GatedMlp(24, 96)),
            r"blocks\.1 \(Block\) has a GatedMlp with the parts act, fc1, fc2, gate, norm.*Supported: timm",
        ),
        (lambda: with_mlp(timm.layers.Mlp(24, 96, use_conv=True)), r"a Mlp whose fc1 and fc2 are not plain nn\.Linear"),
        (lambda: with_mlp(timm.layers.Mlp(24, 96, act_layer=nn.PReLU)), "whose activation has weights of its own"),
        (lambda: with_mlp(timm.layers.Mlp(24, 96, norm_layer=nn.RMSNorm)), "only a LayerNorm can be narrowed"),
        (lambda: with_mlp(weight_normed(timm.layers.Mlp(24, 96))), "parametrised weights; remove the parametrisation"),
        (
            lambda: make_vit(block_fn=TwiceTheBlock),
            r"run block by block it gives another output .* does something else",
        ),
        (lambda: make_vit(global_pool="", class_token=False), r"gives \[1, 16, 5\] for one image, not logits"),
        (
            lambda: timm.create_model("vit_dpwee_patch16_reg1_gap_256", **SMALL),
            r"\(DiffParallelScalingBlock\) has one output projection for attention and MLP together",
        ),
        (lambda: timm.create_model("xcit_nano_12_p16_224"), r"Xcit is not supported"),
        (lambda: timm.create_model("swinv2_cr_tiny_224"), r"SwinTransformerV2Cr is not supported"),
        (lambda: timm.create_model("mixer_s32_224"), r"MlpMixer is not supported"),
        (lambda: DistributedDataParallel(make_vit()), r"wrapped in DistributedDataParallel; pass .*`model\.module`"),
        (
            OpenClipTower,
            r"a class of OpenCLIP, .*timm's port of the tower, such as pathprune\.load_model\('vit_base",
        ),
        (lambda: _module(visual=OpenClipTower()), r"a class of OpenCLIP"),
        (
            lambda: _module(visual=_module(trunk=make_vit(), head=nn.Identity())),
            r"timm model: pass its `visual\.trunk`",
        ),
        (lambda: nn.DataParallel(make_vit()), r"wrapped in DataParallel; pass .*`model\.module`"),
        (lambda: torch.compile(make_vit()), r"wrapped in OptimizedModule; .*before torch\.compile"),
        (with_quantised_linear, r"'blocks\.1\.mlp\.fc1' is quantised \(Linear\); prune the float model first"),
        (with_lora, r"'blocks\.0\.attn\.proj' carries LoRA adapters; merge them"),
        (lambda: "vit_tiny_patch16_224", r"takes a torch\.nn\.Module, got str"),
    ],
)
def test_an_unsupported_model_is_refused_with_what_to_do(build, message):
    with pytest.raises(UnsupportedModelError, match=message):
        adapt(build())


def weight_normed(mlp: nn.Module) -> nn.Module:
    nn.utils.parametrizations.weight_norm(mlp.fc1)
    return mlp


def test_a_model_on_the_meta_device_is_not_checked():
    with torch.device("meta"):
        model = timm.create_model("vit_giant_patch14_dinov2")
    assert {site.width for site in adapt(model).sites} == {4096}


def test_evaluating_restores_modes_and_flags_also_after_an_error():
    model = make_vit()
    model.train()
    model.blocks[0].eval()
    model.head.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert len(set(modes)) == len(set(flags)) == 2

    def run(fail: bool) -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
            if fail:
                raise KeyError("inside")

    run(fail=False)
    with pytest.raises(KeyError):
        run(fail=True)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_model_device_is_that_of_its_parameters():
    assert find_device(nn.Linear(2, 2, device="meta")).type == "meta"
    assert find_device(nn.Linear(2, 2)).type == "cpu"
