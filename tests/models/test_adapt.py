"""The model seam: the steps compose to the model, unsupported models are refused with a reason, modes are restored."""

import copy

import pytest
import timm
import torch
from timm.layers.attention import Attention
from torch import nn

from pathprune.models.adapt import adapt, evaluating, model_device
from pathprune.models.seam import AdaptedModel, UnsupportedModelError

TINY = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 5}

FAMILIES = {
    "vit": ("vit_tiny_patch16_224", {}, (0,)),
    "deit": ("deit_tiny_patch16_224", {}, (0,)),
    "distilled": ("deit_tiny_distilled_patch16_224", {}, (0, 1)),
    "deit3": ("deit3_small_patch16_224", {}, (0,)),
    "dinov2": ("vit_small_patch14_dinov2", {"init_values": 0.3}, (0,)),
    "registers": ("vit_small_patch14_reg4_dinov2", {"init_values": 0.3}, (0,)),
    "avgpool": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}, ()),
    "avgpool-with-class-token": ("vit_tiny_patch16_224", {"global_pool": "avg"}, ()),
    "depth1": ("vit_tiny_patch16_224", {"depth": 1}, (0,)),
}


def make(name: str, **more: object) -> nn.Module:
    architecture, args, _ = FAMILIES[name]
    torch.manual_seed(0)
    model = timm.create_model(architecture, **{**TINY, **args, **more}).double().eval()
    for parameter in model.parameters():  # timm zeroes biases and class tokens: a step left out would not be seen
        nn.init.normal_(parameter, std=0.3)
    return model


def run_in_steps(adapted: AdaptedModel, images: torch.Tensor) -> torch.Tensor:
    h = adapted.stem(images)
    for index in range(len(adapted.sites)):
        h = adapted.close_block(index, *adapted.open_block(index, h))
    return adapted.head(h)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_steps_compose_to_the_model(name):
    model = make(name)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    adapted = adapt(model)
    torch.testing.assert_close(run_in_steps(adapted, images), model(images), rtol=1e-12, atol=1e-12)
    assert isinstance(adapted, AdaptedModel)
    assert adapted.num_classes == 5


@pytest.mark.parametrize("name", FAMILIES)
def test_the_readout_is_the_tokens_that_the_head_reads(name):
    model = make(name)
    adapted = adapt(model)
    assert adapted.readout == FAMILIES[name][2]
    h = adapted.stem(torch.randn(1, 3, 32, 32, dtype=torch.float64)).detach().requires_grad_()
    adapted.head(h).sum().backward()
    read = tuple(h.grad[0].abs().sum(dim=1).nonzero().flatten().tolist())
    if adapted.readout:
        assert read == adapted.readout
    else:
        assert len(read) == 16  # every patch token


class DoubledAttention(Attention):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        *[(name, {}) for name in FAMILIES],
        ("vit", {"qk_norm": True, "qkv_bias": False}),
        ("vit", {"scale_attn_norm": True}),
        ("vit", {"attn_layer": DoubledAttention}),
        ("vit", {"attn_drop_rate": 0.5}),
    ],
)
def test_rows_asked_for_alone_are_those_of_the_whole_block(name, args):
    model = make(name, **args)
    adapted = adapt(model)
    h = adapted.stem(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    rows = torch.tensor(adapted.readout or (3, 1))
    last = len(adapted.sites) - 1
    whole = adapted.open_block(last, h)
    alone = adapted.open_block(last, h, rows)
    for part, expected in zip(alone, whole, strict=True):
        torch.testing.assert_close(part, expected[:, rows], rtol=1e-12, atol=1e-12)
    if adapted.readout:
        read = adapted.head(adapted.close_block(last, *alone))
        torch.testing.assert_close(read, adapted.head(adapted.close_block(last, *whole)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "args"), [*[(name, {}) for name in FAMILIES], ("vit", {"attn_layer": DoubledAttention})]
)
@pytest.mark.parametrize("some_rows", [False, True])
def test_what_a_block_reads_of_a_token_follows_from_that_token_alone(name, args, some_rows):
    adapted = adapt(make(name, **args))
    h = adapted.stem(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    rows = torch.tensor([0, 2]) if some_rows else None
    read = adapted.read_block(0, h, rows)
    one_by_one = torch.cat([adapted.read_block(0, token, rows) for token in h.split(1, dim=1)], dim=1)
    torch.testing.assert_close(read, one_by_one, rtol=1e-12, atol=1e-12)
    for given, own in zip(adapted.open_block(0, h, rows, read=read), adapted.open_block(0, h, rows), strict=True):
        assert torch.equal(given, own)
    m, _ = adapted.open_block(0, h, rows, read=2 * read)
    assert not torch.allclose(m, adapted.open_block(0, h, rows)[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_site_is_the_down_projection_that_reads_its_neurons(name):
    model = make(name)
    adapted = adapt(model)
    assert [site.name for site in adapted.sites] == [f"blocks.{i}.mlp.fc2" for i in range(len(model.blocks))]
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    seen = []
    handles = [s.down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for s in adapted.sites]
    model(images)
    for handle in handles:
        handle.remove()
    h = adapted.stem(images)
    for index, site in enumerate(adapted.sites):
        m, u = adapted.open_block(index, h)
        assert u.shape == (2, h.shape[1], site.width)
        torch.testing.assert_close(u, seen[index], rtol=1e-12, atol=1e-12)
        h = adapted.close_block(index, m, u)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_block_adds_its_scaled_mlp_output_to_the_stream(name):
    adapted = adapt(make(name))
    h = adapted.stem(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    m, u = adapted.open_block(0, h)
    expected = m + adapted.residual_scale(0) * adapted.sites[0].down(u)
    torch.testing.assert_close(adapted.close_block(0, m, u), expected, rtol=1e-12, atol=1e-12)


def test_a_block_that_does_something_else_to_its_mlp_output_has_no_residual_scale():
    model = make("vit")
    model.blocks[1].ls2 = nn.LayerNorm(24).double()
    adapted = adapt(model)
    assert adapted.residual_scale(0) is not None
    assert adapted.residual_scale(1) is None


def test_adapting_changes_nothing():
    model = make("vit")
    before = copy.deepcopy(model.state_dict())
    model.train()
    adapt(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_refresh_sees_surgery():
    model = make("vit")
    adapted = adapt(model)
    mlp = model.blocks[1].mlp
    mlp.fc1, mlp.fc2 = nn.Linear(24, 7).double(), nn.Linear(7, 24).double()
    assert [site.width for site in adapted.sites] == [96, 96]
    assert [site.width for site in adapted.refresh().sites] == [96, 7]


class DistributedDataParallel(nn.Module):
    """Stands in for torch's wrapper, which needs a process group."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module


class LoraLinear(nn.Linear):
    def __init__(self, *args: int):
        super().__init__(*args)
        self.lora_A = nn.Linear(24, 2)


def with_lora() -> nn.Module:
    model = make("vit")
    model.blocks[0].attn.proj = LoraLinear(24, 24)
    return model


def with_quantised_linear() -> nn.Module:
    class Linear(nn.Linear):
        __module__ = "torch.ao.nn.quantized.dynamic.modules.linear"

    model = make("vit")
    model.blocks[1].mlp.fc1 = Linear(24, 96)
    return model


def with_packed_glu() -> nn.Module:
    return timm.create_model("vit_giant_patch14_dinov2", img_size=28, depth=1, embed_dim=24, num_heads=2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: timm.create_model("resnet18"), r"ResNet is not supported: .*Supported: timm VisionTransformer"),
        (lambda: nn.Linear(3, 3), r"Linear is not supported: .*Supported: timm VisionTransformer"),
        (with_packed_glu, r"blocks\.0 \(Block\) has a .*Supported: timm"),
        (lambda: timm.create_model("mixer_s32_224"), r"MlpMixer is not supported"),
        (lambda: DistributedDataParallel(make("vit")), r"wrapped in DistributedDataParallel; pass .*`model\.module`"),
        (lambda: nn.DataParallel(make("vit")), r"wrapped in DataParallel; pass .*`model\.module`"),
        (lambda: torch.compile(make("vit")), r"wrapped in OptimizedModule; .*before torch\.compile"),
        (with_quantised_linear, r"'blocks\.1\.mlp\.fc1' is quantised \(Linear\); prune the float model first"),
        (with_lora, r"'blocks\.0\.attn\.proj' carries LoRA adapters; merge them"),
        (lambda: "vit_tiny_patch16_224", r"takes a torch\.nn\.Module, got str"),
    ],
    ids=["resnet", "linear", "packed-glu", "mixer", "ddp", "dp", "compiled", "quantised", "lora", "a-name"],
)
def test_an_unsupported_model_is_refused_with_what_to_do(build, message):
    with pytest.raises(UnsupportedModelError, match=message):
        adapt(build())


def test_swiglu_blocks_are_refused_by_name():
    model = make("vit")
    model.blocks[1].mlp = timm.layers.SwiGLU(24, 48)
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1 \(Block\) has a SwiGLU"):
        adapt(model)


def test_norm_inside_the_mlp_is_refused():
    model = timm.create_model("vit_tiny_patch16_224", **TINY, scale_mlp_norm=True)
    with pytest.raises(UnsupportedModelError, match="norm between fc1 and fc2"):
        adapt(model)


def test_evaluating_restores_modes_and_flags_even_after_an_error():
    model = make("vit")
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
    assert model_device(nn.Linear(2, 2, device="meta")).type == "meta"
    assert model_device(nn.Linear(2, 2)).type == "cpu"
