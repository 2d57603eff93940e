"""Pruned checkpoints: same logits after a round trip, and clear errors for files that do not match."""

import json
import pickle

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pathprune.models.adapt import adapt
from pathprune.models.architecture import read_data_config
from pathprune.models.checkpoint import describe_pruned, load_pruned, save_pruned
from pathprune.models.pruned_config import is_pruned_folder, read_pruned_config

TINY = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
WIDTHS = (7, 40)


def make_model(
    architecture: str = "vit_tiny_patch16_224", *, widths: tuple[int, ...] | None = WIDTHS, **args
) -> nn.Module:
    """Build a tiny model with random parameters and MLPs narrowed to `widths`."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, **{**TINY, **args}).eval()
    for block, width in zip(model.blocks, widths or (), strict=widths is not None):
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(24, width), nn.Linear(width, 24)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def draw_images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize(
    ("architecture", "args"),
    [
        ("vit_tiny_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("deit3_small_patch16_224", {}),
        ("vit_small_patch14_dinov2", {}),
        ("vit_small_patch14_reg4_dinov2", {}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
        ("vit_tiny_patch16_224", {"act_layer": "relu", "drop_path_rate": 0.1, "qkv_bias": False}),
        ("vit_tiny_patch16_224.augreg_in21k", {"mlp_ratio": 2.0}),
        ("vit_tiny_patch16_224", {"img_size": (16, 24), "in_chans": 1}),
    ],
)
def test_logits_are_the_same_to_the_bit_after_reload(tmp_path, architecture, args):
    model = make_model(architecture, **args)
    size = (args.get("in_chans", 3), *args.get("img_size", (32, 32)))
    batch = torch.randn(2, *size)
    again = load_pruned(save_pruned(model, tmp_path / "pruned"))
    with torch.inference_mode():
        assert torch.equal(again(batch), model(batch))
    assert not again.training
    assert [site.width for site in adapt(again).sites] == list(WIDTHS)
    assert resolve_model_data_config(again)["input_size"] == size
    # a second round trip starts from the result of the first
    twice = load_pruned(save_pruned(again, tmp_path / "again"))
    assert read_pruned_config(tmp_path / "again") == read_pruned_config(tmp_path / "pruned")
    with torch.inference_mode():
        assert torch.equal(twice(batch), model(batch))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_are_kept(tmp_path, dtype):
    model = make_model().to(dtype)
    again = load_pruned(save_pruned(model, tmp_path / "pruned"))
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}
    with torch.inference_mode():
        assert torch.equal(again(draw_images(dtype)), model(draw_images(dtype)))


def test_a_head_changed_after_creation_is_read_from_the_model(tmp_path):
    model = make_model()
    model.reset_classifier(3, global_pool="avg")
    again = load_pruned(save_pruned(model, tmp_path / "pruned"))
    with torch.inference_mode():
        assert torch.equal(again(draw_images()), model(draw_images()))
    assert again(draw_images()).shape == (3, 3)


def test_saving_and_loading_change_neither_model_nor_random_state(tmp_path):
    model = make_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    again = load_pruned(save_pruned(model, tmp_path / "pruned"))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_config_holds_all_given_facts(tmp_path):
    model = make_model()
    kept = {"blocks.0.mlp.fc2": torch.arange(7), "blocks.1.mlp.fc2": torch.arange(0, 80, 2)}
    data = {"input_size": (3, 32, 32), "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "crop_pct": 1.0}
    data |= {"interpolation": "bilinear", "crop_mode": "center"}
    names = ["ant", "bee", "cat", "dog", "emu"]
    save_pruned(
        model,
        tmp_path / "p",
        data_config=data,
        class_names=names,
        kept=kept,
        provenance={"criterion": "path", "n": [1]},
    )
    config = read_pruned_config(tmp_path / "p")
    assert config.widths == {"blocks.0.mlp.fc2": 7, "blocks.1.mlp.fc2": 40}
    assert config.kept == {site: columns.tolist() for site, columns in kept.items()}
    assert config.provenance == {"criterion": "path", "n": [1]}
    assert config.class_names == tuple(names)
    again = load_pruned(tmp_path / "p")
    assert resolve_model_data_config(again) == data
    assert again.pretrained_cfg["label_names"] == tuple(names)
    assert json.loads((tmp_path / "p" / "config.json").read_text())["version"] == 2


def test_tied_parameters_stay_tied_and_views_are_separated(tmp_path):
    model = make_model(widths=(40, 40))
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    memory = torch.randn(48)
    model.norm.weight.data, model.norm.bias.data = memory[:24], memory[24:]
    again = load_pruned(save_pruned(model, tmp_path / "pruned"))
    assert again.blocks[1].mlp.fc1.weight is again.blocks[0].mlp.fc1.weight
    assert "blocks.1.mlp.fc1.weight" not in load_file(tmp_path / "pruned" / "model.safetensors")
    with torch.inference_mode():
        assert torch.equal(again(draw_images()), model(draw_images()))


def test_a_model_that_timm_did_not_build_needs_its_architecture(tmp_path):
    torch.manual_seed(0)
    model = VisionTransformer(**TINY).eval()
    with pytest.raises(ValueError, match=r"timm\.create_model did not build it; pass architecture="):
        save_pruned(model, tmp_path / "pruned")
    save_pruned(model, tmp_path / "pruned", architecture={"name": "vit_tiny_patch16_224", "args": TINY})
    with torch.inference_mode():
        assert torch.equal(load_pruned(tmp_path / "pruned")(draw_images()), model(draw_images()))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({**TINY, "num_classes": 6}, r"cannot be saved: .*does not match the model: .*pass architecture="),
        (
            {**TINY, "depth": 3},
            r"cannot be saved: .*2 sites, the model has 3; .*blocks\.2\.mlp\.fc2; pass architecture=",
        ),
        ({**TINY, "num_heads": 3}, r"cannot be saved: built again, it gives other logits; pass architecture="),
        ({**TINY, "act_layer": "relu"}, r"built again, it gives other logits; pass architecture="),
        ({**TINY, "nonsense": 1}, r"timm cannot make vit_tiny_patch16_224 with .*nonsense"),
        ({**TINY, "checkpoint_path": "x.pth"}, r"checkpoint_path cannot be among the args"),
        ({**TINY, "act_layer": nn.ReLU}, r"act_layer=.* cannot be written as JSON"),
    ],
)
def test_a_wrong_architecture_is_refused_and_leaves_no_files(tmp_path, args, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        save_pruned(model, tmp_path / "pruned", architecture={"name": "vit_tiny_patch16_224", "args": args})
    assert list(tmp_path.iterdir()) == []


def test_unsupported_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ResNet is not supported"):
        save_pruned(timm.create_model("resnet18"), tmp_path / "pruned")


def test_only_an_earlier_checkpoint_is_replaced(tmp_path):
    model = make_model()
    folder = tmp_path / "pruned"
    folder.mkdir()
    save_pruned(model, folder, provenance={"n": 1})
    save_pruned(model, folder, provenance={"n": 2})
    assert read_pruned_config(folder).provenance == {"n": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]

    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files that do not belong to a pruned checkpoint"):
        save_pruned(model, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="choose a new or empty folder"):
        save_pruned(model, other)
    with pytest.raises(ValueError, match="is a file"):
        save_pruned(model, other / "config.json")


def test_a_failed_replacement_keeps_the_earlier_checkpoint(tmp_path):
    model = make_model()
    save_pruned(model, tmp_path / "pruned", provenance={"n": 1})
    with pytest.raises(ValueError, match="other logits"):
        save_pruned(
            model, tmp_path / "pruned", architecture={"name": "vit_tiny_patch16_224", "args": {**TINY, "num_heads": 3}}
        )
    assert read_pruned_config(tmp_path / "pruned").provenance == {"n": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def test_wrong_class_names_kept_columns_and_provenance_are_refused(tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match="got 2 class names for 5 classes"):
        save_pruned(model, tmp_path / "p", class_names=["a", "b"])
    with pytest.raises(ValueError, match="numbers of kept columns differ"):
        save_pruned(model, tmp_path / "p", kept={"blocks.0.mlp.fc2": torch.arange(7)})
    with pytest.raises(ValueError, match="must be plain JSON"):
        save_pruned(model, tmp_path / "p", provenance={"tensor": torch.ones(1)})


def edit_config(folder, **changes):
    file = folder / "config.json"
    content = json.loads(file.read_text())
    for key, value in changes.items():
        (content if key in content else content["pathprune"])[key] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, r"version 3 of the format, this pathprune reads version 2"),
        ({"version": "2"}, r"version '2' of the format, this pathprune reads version 2"),
        ({"pathprune": None}, r"pathprune must be an object, got None"),
        ({"format": "other"}, r"no checkpoint that save_pruned wrote"),
        (
            {"widths": {"blocks.0.mlp.fc2": 8, "blocks.1.mlp.fc2": 40}},
            r"gives blocks\.0\.mlp\.fc2 8 neurons.*\[24, 7\]",
        ),
        ({"widths": {"blocks.0.mlp.fc2": 10**12, "blocks.1.mlp.fc2": 40}}, r"do not belong together"),
        ({"widths": {"blocks.0.mlp.fc2": "7", "blocks.1.mlp.fc2": 40}}, r"gives blocks\.0\.mlp\.fc2 '7' neurons"),
        ({"widths": {"blocks.0.mlp.fc2": 7}}, r"widths for 1 sites, the model has 2; .*blocks\.1\.mlp\.fc2"),
        ({"widths": None}, r"widths must be an object, got None"),
        ({"code": "import os"}, r"unknown \['code'\]"),
        (
            {"base": {"name": "vit_tinny_patch16_224", "args": {}}},
            r"unknown model .*did you mean vit_tiny_patch16",
        ),
        ({"base": {"name": "hf-hub:someone/model", "args": {}}}, r"unknown model 'hf-hub:someone/model'"),
        (
            {"base": {"name": "vit_tiny_patch16_224", "args": {"pretrained": True}}},
            r"pretrained cannot be among",
        ),
        ({"base": ["vit_tiny_patch16_224"]}, r"an architecture is a timm name or"),
        ({"tied": {"blocks.0.nothing": "norm.weight"}}, r"ties blocks\.0\.nothing to norm\.weight"),
    ],
)
def test_an_altered_config_is_refused(tmp_path, changes, message):
    save_pruned(make_model(), tmp_path / "p")
    edit_config(tmp_path / "p", **changes)
    with pytest.raises(ValueError, match=message):
        load_pruned(tmp_path / "p")


def test_altered_weights_are_refused(tmp_path):
    save_pruned(make_model(), tmp_path / "p")
    file = tmp_path / "p" / "model.safetensors"
    tensors = load_file(file)
    for change, message in [
        ({"head.weight": None}, r"does not match the model: 1 missing \(head\.weight\)"),
        ({"extra": torch.ones(1)}, r"1 unexpected \(extra\)"),
        ({"head.bias": torch.ones(4)}, r"1 of another shape \(head\.bias \[4\] instead of \[5\]\)"),
        ({"blocks.1.mlp.fc2.weight": None}, r"gives blocks\.1\.mlp\.fc2 40 neurons, .* holds no such weight"),
    ]:
        save_file({name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}, file)
        with pytest.raises(ValueError, match=message):
            load_pruned(tmp_path / "p")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="as safetensors"):
        load_pruned(tmp_path / "p")
    file.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors does not exist"):
        load_pruned(tmp_path / "p")


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle ran",)


def test_a_pickle_in_place_of_the_weights_is_not_run(tmp_path):
    save_pruned(make_model(), tmp_path / "p")
    (tmp_path / "p" / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="as safetensors"):
        load_pruned(tmp_path / "p")


def test_other_folders_are_not_pruned_checkpoints(tmp_path):
    assert not is_pruned_folder(tmp_path)
    with pytest.raises(ValueError, match="no pruned checkpoint"):
        load_pruned(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert not is_pruned_folder(tmp_path)
    with pytest.raises(ValueError, match="not valid JSON"):
        load_pruned(tmp_path)
    save_pruned(make_model(), tmp_path / "p")
    assert is_pruned_folder(tmp_path / "p")


@pytest.mark.parametrize(
    ("architecture", "args"),
    [
        ("vit_tiny_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {"in_chans": 1}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": (16, 24)}),
    ],
)
@pytest.mark.parametrize("width", [7, 40, 96])
def test_timm_loads_equal_widths_without_pathprune(tmp_path, architecture, args, width):
    names = ["ant", "bee", "cat", "dog", "emu"]
    model = make_model(architecture, widths=(width, width), **args)
    data = {**read_data_config(model), "mean": (0.1, 0.2, 0.3), "crop_pct": 1.0}
    save_pruned(model, tmp_path / "p", class_names=names, data_config=data)
    again = timm.create_model(f"local-dir:{tmp_path / 'p'}", pretrained=True).eval()
    batch = torch.randn(2, *data["input_size"])
    with torch.inference_mode():
        assert torch.equal(again(batch), model(batch))
    for reloaded in (again, load_pruned(tmp_path / "p")):
        assert json.dumps(resolve_model_data_config(reloaded)) == json.dumps(data)  # JSON has no tuples
    assert again.pretrained_cfg["label_names"] == names
    assert "timm.create_model" in (tmp_path / "p" / "README.md").read_text()


def test_transformers_loads_equal_widths_through_timm(tmp_path):
    transformers = pytest.importorskip("transformers")
    names = ["ant", "bee", "cat", "dog", "emu"]
    model = make_model(widths=(40, 40))
    save_pruned(model, tmp_path / "p", class_names=names)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "p").eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(draw_images()).logits, model(draw_images()), rtol=0, atol=1e-6)
    assert list(again.config.id2label.values()) == names


def test_config_has_no_keys_for_timm_if_timm_cannot_build_the_model(tmp_path):
    save_pruned(make_model(widths=(7, 40)), tmp_path / "p")
    with pytest.raises(KeyError, match="architecture"):
        timm.create_model(f"local-dir:{tmp_path / 'p'}", pretrained=True)
    assert "timm has one `mlp_ratio` for all MLPs" in (tmp_path / "p" / "README.md").read_text()


ROW = {"num_images": 400, "top1_ci": [0.7, 0.8], "retention_ci": [0.9, 0.95], "num_params": 2e6, "macs": 3e6}
METRICS = {
    "data": {"source": "cifar10", "split": "test"},
    "dense": {**ROW, "top1": 0.79, "retention": 1.0, "latency_ms": 12.0},
    "pruned": {**ROW, "top1": 0.75, "retention": 0.93, "latency_ms": 8.0, "latency_batch_size": 16, "speedup": 1.5},
}


def test_the_card_shows_metrics_and_provenance(tmp_path):
    save_pruned(
        make_model(), tmp_path / "my-vit", license="apache-2.0", base_model="timm/vit_tiny_patch16_224.augreg_in21k"
    )
    card = ModelCard.load(tmp_path / "my-vit" / "README.md")
    assert "Not evaluated yet" in card.text
    assert "75.5% of its MLP neurons removed" in card.text  # 47 of 192 remain
    assert "| MLP neurons | 192 | 47 |" in card.text
    describe_pruned(tmp_path / "my-vit", metrics=METRICS, provenance={"recipe": {"name": "quickstart"}})
    card = ModelCard.load(tmp_path / "my-vit" / "README.md")
    assert "| top-1 % | 79.0 [70.0, 80.0] | 75.0 [70.0, 80.0] |" in card.text
    assert "| latency of a batch of 16 | 12.0 ms | 8.0 ms (1.50× faster) |" in card.text
    assert "name: quickstart" in card.text
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "timm/vit_tiny_patch16_224.augreg_in21k")
    assert card.data.eval_results[0].metric_value == 0.75
    config = read_pruned_config(tmp_path / "my-vit")
    assert (config.metrics, config.license) == (METRICS, "apache-2.0")
    load_pruned(tmp_path / "my-vit")


def test_an_edited_card_is_kept_if_the_description_does_not_change(tmp_path):
    save_pruned(make_model(), tmp_path / "p", metrics=METRICS)
    card = tmp_path / "p" / "README.md"
    card.write_text("edited")
    describe_pruned(tmp_path / "p", metrics=METRICS)
    assert card.read_text() == "edited"
    describe_pruned(tmp_path / "p", license="mit")
    assert "mit, as the dense weights" in card.read_text()
