"""Loading of models from folders, weights files, timm names and pruned checkpoints; one-line errors for mistakes."""

import argparse
import fractions
import json
import logging
import pickle

import accelerate
import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from pathprune.models import loading
from pathprune.models.checkpoint import save_pruned
from pathprune.models.loading import load_model
from tests.families import OpenClipTower, randomise

NAME = "vit_tiny_patch16_224"
ARGS = {"patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
NAMES = ["ant", "bee", "cat", "dog", "emu"]


def make_model(**args) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(NAME, **{**ARGS, "img_size": 32, "num_classes": 5, **args}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def draw_images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def assert_same(a: nn.Module, b: nn.Module) -> None:
    with torch.inference_mode():
        assert torch.equal(a(draw_images()), b(draw_images()))


@pytest.fixture
def folder(tmp_path):
    """Write a folder as timm saves it, with float16 weights."""
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
    save_file(make_model().half().state_dict(), folder / "model.safetensors")
    return folder


def rewrite(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_timm_folder_brings_its_data_config_and_class_names(folder, prefix):
    loaded = load_model(f"{prefix}{folder}")
    assert_same(loaded.model, make_model().half().float())
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


def test_demo_is_a_folder_in_the_package(folder, monkeypatch):
    monkeypatch.setattr(loading, "DEMO_FOLDER", folder)
    assert_same(load_model("demo").model, load_model(str(folder)).model)
    monkeypatch.setattr(loading, "DEMO_FOLDER", folder / "absent")
    with pytest.raises(ValueError, match="demo model is missing from this installation"):
        load_model("demo")


def test_a_folder_with_an_unusual_image_size_resizes_the_position_embedding(folder):
    loaded = load_model(str(folder), image_size=48)
    assert loaded.data_config["input_size"] == (3, 48, 48)
    with torch.inference_mode():
        assert loaded.model(draw_images(48)).shape == (2, 5)
    assert loaded.model.pos_embed.shape[1] == 1 + 6 * 6


def test_pretrained_false_gives_random_weights(folder):
    loaded = load_model(str(folder), pretrained=False, num_classes=7)
    assert loaded.model.num_classes == 7
    assert loaded.class_names is None  # the names in the folder are for its own head
    assert not torch.equal(loaded.model.blocks[0].mlp.fc1.weight, make_model().blocks[0].mlp.fc1.weight)
    assert load_model(NAME, pretrained=False, image_size=32, model_args=ARGS).data_config["input_size"] == (3, 32, 32)


@pytest.mark.parametrize("key", ["", "model", "state_dict", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "timm_model."])
def test_a_torch_checkpoint_is_unwrapped(tmp_path, key, prefix):
    state = {prefix + name: tensor for name, tensor in make_model().state_dict().items()}
    if key:
        state = {key: state, "epoch": 3, "optimizer": {"lr": 0.1}, "args": argparse.Namespace(lr=0.1)}
    torch.save(state, tmp_path / "weights.pth")
    loaded = load_model(NAME, checkpoint=tmp_path / "weights.pth", image_size=32, model_args=ARGS)
    assert_same(loaded.model, make_model())


@pytest.mark.parametrize("prefix", ["visual.", ""])
def test_weights_of_openclip_load_into_timms_port(tmp_path, prefix):
    tower = randomise(OpenClipTower()).eval()
    state = {f"{prefix}{name}": tensor for name, tensor in tower.state_dict().items()}
    torch.save(state | ({"logit_scale": torch.ones(())} if prefix else {}), tmp_path / "weights.bin")
    sizes = {"depth": 2, "embed_dim": 64, "num_heads": 2, "patch_size": 8}
    loaded = load_model(
        "vit_base_patch16_clip_224",
        checkpoint=tmp_path / "weights.bin",
        num_classes=7,
        image_size=32,
        model_args=sizes,
    )
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), tower(images), rtol=1e-5, atol=1e-5)


def test_averaged_weights_are_preferred_as_in_timm(tmp_path):
    averaged = make_model()
    nn.init.ones_(averaged.head.bias)
    torch.save({"model": make_model().state_dict(), "model_ema": averaged.state_dict()}, tmp_path / "weights.pth")
    assert_same(load_model(NAME, checkpoint=tmp_path / "weights.pth", model_args=ARGS).model, averaged)


def test_head_and_image_size_come_from_the_weights(tmp_path):
    save_file(make_model(num_classes=3, img_size=32).state_dict(), tmp_path / "weights.safetensors")
    loaded = load_model(NAME, checkpoint=tmp_path / "weights.safetensors", model_args=ARGS)
    assert loaded.model.num_classes == 3
    assert loaded.data_config["input_size"] == (3, 32, 32)
    assert_same(loaded.model, make_model(num_classes=3))


def test_a_checkpoint_replaces_the_weights_of_a_folder(folder, tmp_path):
    other = make_model()
    nn.init.ones_(other.head.bias)
    save_file(other.state_dict(), tmp_path / "weights.safetensors")
    assert_same(load_model(str(folder), checkpoint=tmp_path / "weights.safetensors").model, other)


def test_a_pruned_folder_is_recognised(tmp_path):
    model = make_model()
    model.blocks[0].mlp.fc1, model.blocks[0].mlp.fc2 = nn.Linear(24, 5), nn.Linear(5, 24)
    save_pruned(model, tmp_path / "pruned", class_names=NAMES)
    loaded = load_model(str(tmp_path / "pruned"), num_classes=5, image_size=32)
    assert_same(loaded.model, model)
    assert loaded.class_names == tuple(NAMES)
    assert loaded.data_config["input_size"] == (3, 32, 32)
    with pytest.raises(ValueError, match="num_classes=5, which cannot become 6"):
        load_model(str(tmp_path / "pruned"), num_classes=6)
    with pytest.raises(ValueError, match="remove checkpoint"):
        load_model(str(tmp_path / "pruned"), checkpoint="weights.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tinny_patch16_224", r"unknown model 'vit_tinny_patch16_224': .*did you mean vit_tiny_patch16_224"),
        ("qqqqqqqq", r"unknown model 'qqqqqqqq': .*timm\.list_models\(\) lists all names"),
        ("vit_tiny_patch16_224.nothing", r"timm cannot make .*Invalid pretrained tag"),
        ("owner/model", r"folder owner/model does not exist; for a model on the hub write hf-hub:owner/model"),
        ("/nowhere/at/all", r"folder /nowhere/at/all does not exist; pass an existing folder"),
        ("local-dir:nowhere", r"folder nowhere does not exist"),
    ],
)
def test_an_unknown_name_gives_one_clear_line(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [NAME, "hf-hub:owner/model"])
def test_an_unreachable_hub_gives_one_clear_line(name, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"the hub cannot be reached.*pass it as checkpoint") as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def test_a_new_head_on_hub_weights_gives_a_warning(monkeypatch, caplog):
    model = make_model(num_classes=7)  # a stand-in for a model with downloaded weights
    monkeypatch.setattr(timm, "create_model", lambda name, **arguments: model)
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
    save_file(make_model().state_dict(), weights)
    refused(r"head of 5 classes, num_classes asks for 9", checkpoint=weights, num_classes=9)
    refused(
        r"does not match the model: 12 missing \(blocks\.2\..*, …\)", checkpoint=weights, model_args=ARGS | {"depth": 3}
    )
    refused(r"12 unexpected \(blocks\.1\.", checkpoint=weights, model_args=ARGS | {"depth": 1})
    refused(
        r"of another shape \(cls_token \[1, 1, 24\] instead of", checkpoint=weights, model_args=ARGS | {"embed_dim": 26}
    )
    refused(r"timm cannot make .* with \{'nonsense': 1\}", pretrained=False, model_args={"nonsense": 1})

    no_weights = tmp_path / "notes.txt"
    no_weights.write_text("hello")
    refused(r"the extension '\.txt'", checkpoint=no_weights)
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    refused(r"holds no state dict, but 1 entries \(epoch\)", checkpoint=tmp_path / "empty.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut short")
    refused(r"cannot read .*cut\.pth as a torch checkpoint", checkpoint=tmp_path / "cut.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"short")
    refused(r"cannot read .*cut\.safetensors as safetensors", checkpoint=tmp_path / "cut.safetensors")
    torch.save({"model": make_model().state_dict(), "lr": fractions.Fraction(1, 10)}, tmp_path / "objects.pth")
    refused(r"objects in it are not loaded, since that can run code.*torch\.save", checkpoint=tmp_path / "objects.pth")


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle ran",)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_a_pickle_is_never_run(tmp_path, save):
    save({"model": make_model().state_dict(), "bomb": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="objects in it are not loaded"):
        load_model(NAME, checkpoint=tmp_path / "bomb.pth", model_args=ARGS)


def test_wrong_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"head of 5 classes, num_classes asks for 6"):
        load_model(str(folder), num_classes=6)
    with pytest.raises(ValueError, match="is a file; pass the model's timm name"):
        load_model(str(folder / "model.safetensors"))
    save_file(make_model().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has no readable config\.json.*the folder as checkpoint"):
        load_model(str(tmp_path))
    (folder / "model.safetensors").rename(folder / "else.safetensors")
    with pytest.raises(ValueError, match="holds no weights"):
        load_model(str(folder))
    rewrite(folder, architecture="vit_tinny_patch16_224")
    with pytest.raises(ValueError, match=r"config\.json: unknown model .*did you mean"):
        load_model(str(folder))
    (folder / "config.json").write_text(json.dumps({"backbone": "vit"}))
    with pytest.raises(ValueError, match="names neither a timm architecture nor a Transformers model"):
        load_model(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_model(str(folder))


def test_a_folder_of_accelerate_loads_as_a_checkpoint(tmp_path):
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.prepare(make_model())
    accelerator.save_state(tmp_path / "state")
    loaded = load_model(NAME, checkpoint=tmp_path / "state", model_args=ARGS)
    assert_same(loaded.model, make_model())
    with pytest.raises(ValueError, match=r"pass the model's timm name, and the folder as checkpoint"):
        load_model(str(tmp_path / "state"))


def test_a_sharded_checkpoint_is_loaded(tmp_path):
    state = make_model().state_dict()
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: state[name] for name in own}, tmp_path / part)
    index = {"weight_map": {name: part for part, own in parts.items() for name in own}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(load_model(NAME, checkpoint=tmp_path, model_args=ARGS).model, make_model())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"b\.safetensors does not exist"):
        load_model(NAME, checkpoint=tmp_path, model_args=ARGS)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="as the index of a sharded checkpoint"):
        load_model(NAME, checkpoint=tmp_path, model_args=ARGS)


def test_the_error_for_a_folder_of_a_training_names_its_checkpoints(tmp_path):
    for step in ("checkpoint-1000", "checkpoint-500"):
        (tmp_path / step).mkdir()
    for arguments in ({"name": str(tmp_path)}, {"name": NAME, "checkpoint": tmp_path}):
        with pytest.raises(ValueError, match=r"of a training, checkpoint-500, checkpoint-1000; pass one of them"):
            load_model(**arguments)


def convert_to_jax(model: nn.Module) -> dict[str, np.ndarray]:
    """Return the weights with the names and shapes of the original JAX code."""
    heads = model.blocks[0].attn.num_heads
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    found = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for index in range(len(model.blocks)):
        ours, theirs = f"blocks.{index}.", f"Transformer/encoderblock_{index}/"
        for norm, place in (("norm1", 0), ("norm2", 2)):
            found[f"{theirs}LayerNorm_{place}/scale"] = state[f"{ours}{norm}.weight"]
            found[f"{theirs}LayerNorm_{place}/bias"] = state[f"{ours}{norm}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        qkv = zip(("query", "key", "value"), np.split(state[f"{ours}attn.qkv.weight"], 3), strict=True)
        for (part, weight), bias in zip(qkv, np.split(state[f"{ours}attn.qkv.bias"], 3), strict=True):
            found[f"{attention}{part}/kernel"] = weight.T.reshape(len(weight), heads, -1)
            found[f"{attention}{part}/bias"] = bias.reshape(heads, -1)
        projection = state[f"{ours}attn.proj.weight"]
        found[f"{attention}out/kernel"] = projection.T.reshape(heads, -1, len(projection))
        found[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
        for layer, place in (("fc1", 0), ("fc2", 1)):
            found[f"{theirs}MlpBlock_3/Dense_{place}/kernel"] = state[f"{ours}mlp.{layer}.weight"].T
            found[f"{theirs}MlpBlock_3/Dense_{place}/bias"] = state[f"{ours}mlp.{layer}.bias"]
    return found


def test_an_original_npz_is_loaded_with_its_head(tmp_path, caplog):
    weights = convert_to_jax(make_model(num_classes=3))
    np.savez(tmp_path / "vit.npz", **weights)
    loaded = load_model(NAME, checkpoint=tmp_path / "vit.npz", image_size=32, model_args=ARGS)
    assert_same(loaded.model, make_model(num_classes=3))
    resized = load_model(NAME, checkpoint=tmp_path / "vit.npz", image_size=48, model_args=ARGS)
    assert resized.model.pos_embed.shape[1] == 1 + 6 * 6
    with pytest.raises(ValueError, match="head of 3 classes, num_classes asks for 9"):
        load_model(NAME, checkpoint=tmp_path / "vit.npz", num_classes=9, model_args=ARGS)
    with pytest.raises(ValueError, match=r"has 2 blocks, the model 1; check the model's name"):
        load_model(NAME, checkpoint=tmp_path / "vit.npz", model_args=ARGS | {"depth": 1})
    np.savez(tmp_path / "headless.npz", **{k: v for k, v in weights.items() if not k.startswith("head")})
    load_model(NAME, checkpoint=tmp_path / "headless.npz", image_size=32, num_classes=4, model_args=ARGS)
    assert "has no head: the model's head for 4 classes is untrained" in caplog.text
    np.savez(tmp_path / "else.npz", something=np.zeros(3))
    with pytest.raises(ValueError, match=r"timm cannot read .*else\.npz into"):
        load_model(NAME, checkpoint=tmp_path / "else.npz", model_args=ARGS)
    (tmp_path / "cut.npz").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"cannot read .*cut\.npz as an \.npz file"):
        load_model(NAME, checkpoint=tmp_path / "cut.npz", model_args=ARGS)
