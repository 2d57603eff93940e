"""Loading a model from a folder, a weights file, a timm name, a pruned checkpoint; one clear line for each mistake."""

import argparse
import json
import logging
import pickle

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from pathprune.models import loading
from pathprune.models.checkpoint import save_pruned
from pathprune.models.loading import load_model

NAME = "vit_tiny_patch16_224"
ARGS = {"patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
NAMES = ["ant", "bee", "cat", "dog", "emu"]


def make(**args) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(NAME, **{**ARGS, "img_size": 32, "num_classes": 5, **args}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def assert_same(a: nn.Module, b: nn.Module) -> None:
    with torch.inference_mode():
        assert torch.equal(a(images()), b(images()))


@pytest.fixture
def folder(tmp_path):
    """A folder as timm saves it, weights in float16."""
    folder = tmp_path / "saved"
    folder.mkdir()
    config = {
        "architecture": NAME,
        "num_classes": 5,
        "model_args": {**ARGS, "img_size": [32, 32], "num_classes": 5},
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "fixed_input_size": True,
            "num_classes": 5,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "label_names": NAMES,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(make().half().state_dict(), folder / "model.safetensors")
    return folder


def rewrite(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_timm_folder_brings_its_data_config_and_class_names(folder, prefix):
    loaded = load_model(f"{prefix}{folder}")
    assert_same(loaded.model, make().half().float())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training
    assert loaded.class_names == tuple(NAMES)
    assert loaded.data_config == {
        "input_size": (3, 32, 32),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    assert loaded.architecture.name == NAME
    again = timm.create_model(loaded.architecture.name, **loaded.architecture.args)
    assert [p.shape for p in again.parameters()] == [p.shape for p in loaded.model.parameters()]


def test_demo_is_a_folder_of_the_package(folder, monkeypatch):
    monkeypatch.setattr(loading, "DEMO_FOLDER", folder)
    assert_same(load_model("demo").model, load_model(str(folder)).model)
    monkeypatch.setattr(loading, "DEMO_FOLDER", folder / "absent")
    with pytest.raises(ValueError, match="demo model is missing from this installation"):
        load_model("demo")


def test_a_folder_with_an_unusual_image_size_resizes_the_position_embedding(folder):
    loaded = load_model(str(folder), image_size=48)
    assert loaded.data_config["input_size"] == (3, 48, 48)
    with torch.inference_mode():
        assert loaded.model(images(48)).shape == (2, 5)
    assert loaded.model.pos_embed.shape[1] == 1 + 6 * 6


def test_random_weights_on_request(folder):
    loaded = load_model(str(folder), pretrained=False, num_classes=7)
    assert loaded.model.num_classes == 7
    assert loaded.class_names is None  # those of the folder are for its own head
    assert not torch.equal(loaded.model.blocks[0].mlp.fc1.weight, make().blocks[0].mlp.fc1.weight)
    assert load_model(NAME, pretrained=False, image_size=32, model_args=ARGS).data_config["input_size"] == (3, 32, 32)


@pytest.mark.parametrize("wrap", ["none", "model", "state_dict", "model_ema", "module.", "model+module.", "_orig_mod."])
def test_a_torch_checkpoint_is_unwrapped(tmp_path, wrap):
    state = make().state_dict()
    for prefix in ("module.", "_orig_mod."):
        if wrap.endswith(prefix):
            state = {prefix + name: tensor for name, tensor in state.items()}
    if wrap.split("+")[0] in ("model", "state_dict", "model_ema"):
        state = {wrap.split("+")[0]: state, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(state, tmp_path / "weights.pth")
    loaded = load_model(NAME, checkpoint=tmp_path / "weights.pth", image_size=32, model_args=ARGS)
    assert_same(loaded.model, make())


def test_averaged_weights_are_preferred_as_in_timm(tmp_path):
    averaged = make()
    nn.init.ones_(averaged.head.bias)
    torch.save({"model": make().state_dict(), "model_ema": averaged.state_dict()}, tmp_path / "weights.pth")
    assert_same(load_model(NAME, checkpoint=tmp_path / "weights.pth", model_args=ARGS).model, averaged)


def test_head_and_image_size_come_from_the_weights(tmp_path):
    save_file(make(num_classes=3, img_size=32).state_dict(), tmp_path / "weights.safetensors")
    loaded = load_model(NAME, checkpoint=tmp_path / "weights.safetensors", model_args=ARGS)
    assert loaded.model.num_classes == 3
    assert loaded.data_config["input_size"] == (3, 32, 32)
    assert_same(loaded.model, make(num_classes=3))


def test_a_checkpoint_goes_before_the_weights_of_a_folder(folder, tmp_path):
    other = make()
    nn.init.ones_(other.head.bias)
    save_file(other.state_dict(), tmp_path / "weights.safetensors")
    assert_same(load_model(str(folder), checkpoint=tmp_path / "weights.safetensors").model, other)


def test_a_pruned_folder_is_recognised(tmp_path):
    model = make()
    model.blocks[0].mlp.fc1, model.blocks[0].mlp.fc2 = nn.Linear(24, 5), nn.Linear(5, 24)
    save_pruned(model, tmp_path / "pruned", class_names=NAMES)
    loaded = load_model(str(tmp_path / "pruned"), num_classes=5, image_size=32)
    assert_same(loaded.model, model)
    assert loaded.class_names == tuple(NAMES)
    assert loaded.data_config["input_size"] == (3, 32, 32)
    with pytest.raises(ValueError, match="num_classes=5, which cannot become 6"):
        load_model(str(tmp_path / "pruned"), num_classes=6)
    with pytest.raises(ValueError, match="leave out checkpoint"):
        load_model(str(tmp_path / "pruned"), checkpoint="weights.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tinny_patch16_224", r"unknown model 'vit_tinny_patch16_224': .*did you mean vit_tiny_patch16_224"),
        ("qqqqqqqq", r"unknown model 'qqqqqqqq': .*timm\.list_models\(\) lists them"),
        ("vit_tiny_patch16_224.nothing", r"timm cannot make .*Invalid pretrained tag"),
        ("owner/model", r"folder owner/model does not exist; for a model on the hub write hf-hub:owner/model"),
        ("/nowhere/at/all", r"folder /nowhere/at/all does not exist; give an existing one"),
        ("local-dir:nowhere", r"folder nowhere does not exist"),
    ],
)
def test_an_unknown_name_is_one_clear_line(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [NAME, "hf-hub:owner/model"])
def test_no_hub_is_one_clear_line(name, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"the hub cannot be reached.*pass it as checkpoint") as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def test_a_new_head_on_hub_weights_is_said(monkeypatch, caplog):
    model = make(num_classes=7)  # stands in for what timm makes of downloaded weights
    monkeypatch.setattr(loading.timm, "create_model", lambda name, **arguments: model)
    with caplog.at_level(logging.WARNING):
        load_model(NAME, num_classes=7)
    assert "weights for 1000 classes: its head for 7 is new and untrained" in caplog.text


def test_wrong_checkpoint_files_are_refused(tmp_path):
    def refused(message, **arguments):
        with pytest.raises(ValueError, match=message) as caught:
            load_model(NAME, **{"model_args": ARGS, **arguments})
        assert "\n" not in str(caught.value)

    refused(r"nothing\.pth does not exist", checkpoint=tmp_path / "nothing.pth")
    weights = tmp_path / "weights.safetensors"
    save_file(make().state_dict(), weights)
    refused(r"head of 5 classes, num_classes asks for 9", checkpoint=weights, num_classes=9)
    refused(
        r"does not fit the model: 12 missing \(blocks\.2\..*, …\)", checkpoint=weights, model_args=ARGS | {"depth": 3}
    )
    refused(r"12 unexpected \(blocks\.1\.", checkpoint=weights, model_args=ARGS | {"depth": 1})
    refused(
        r"of another shape \(cls_token \[1, 1, 24\] instead of", checkpoint=weights, model_args=ARGS | {"embed_dim": 26}
    )
    refused(r"timm cannot make .* with \{'nonsense': 1\}", pretrained=False, model_args={"nonsense": 1})

    no_weights = tmp_path / "notes.txt"
    no_weights.write_text("hello")
    refused(r"the ending '\.txt'", checkpoint=no_weights)
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    refused(r"holds no state dict, but 1 entries \(epoch\)", checkpoint=tmp_path / "empty.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut short")
    refused(r"cannot read .*cut\.pth as a torch checkpoint", checkpoint=tmp_path / "cut.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"short")
    refused(r"cannot read .*cut\.safetensors as safetensors", checkpoint=tmp_path / "cut.safetensors")
    torch.save({"model": make().state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "objects.pth")
    refused(r"objects in it are not loaded, since that can run code.*torch\.save", checkpoint=tmp_path / "objects.pth")


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle ran",)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_a_pickle_is_never_run(tmp_path, save):
    save({"model": make().state_dict(), "bomb": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="objects in it are not loaded"):
        load_model(NAME, checkpoint=tmp_path / "bomb.pth", model_args=ARGS)


def test_wrong_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"head of 5 classes, num_classes asks for 6"):
        load_model(str(folder), num_classes=6)
    with pytest.raises(ValueError, match="is a file; give the model's timm name"):
        load_model(str(folder / "model.safetensors"))
    with pytest.raises(ValueError, match=r"has no readable config\.json"):
        load_model(str(tmp_path))
    (folder / "model.safetensors").rename(folder / "else.safetensors")
    with pytest.raises(ValueError, match="holds no weights"):
        load_model(str(folder))
    rewrite(folder, architecture="vit_tinny_patch16_224")
    with pytest.raises(ValueError, match=r"config\.json: unknown model .*did you mean"):
        load_model(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="names no timm architecture"):
        load_model(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_model(str(folder))
