"""Transformers models: loading from save_pretrained's folders, their image processors, and saving of pruned ones."""

import copy
import json
import logging

import pytest
import torch
from torch import nn

from pathprune.models.adapt import adapt
from pathprune.models.checkpoint import load_pruned, read_pruned_config, save_pruned
from pathprune.models.loading import load_model
from pathprune.models.seam import UnsupportedModelError
from pathprune.pruning import make_plan, prune
from tests.families import DATA_CONFIG, HF_FAMILIES, randomise

transformers = pytest.importorskip("transformers")

NAMES = ["ant", "bee", "cat", "dog", "emu"]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def make_model() -> nn.Module:
    """Build a bare model, without our wrapper."""
    model = HF_FAMILIES["hf-vit"].make().model
    model.config.id2label = dict(enumerate(NAMES))
    return model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    output = model(IMAGES)
    return output if isinstance(output, torch.Tensor) else output.logits


@pytest.fixture
def folder(tmp_path):
    """Write the folder that a fine-tuning leaves: a model and its image processor."""
    make_model().save_pretrained(tmp_path / "saved")
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_folder_brings_its_labels_and_its_preprocessing(folder):
    loaded = load_model(str(folder))
    assert torch.equal(logits(loaded.model), logits(make_model()))
    assert loaded.class_names == tuple(NAMES)
    assert loaded.data_config == DATA_CONFIG | {"mean": (0.1, 0.2, 0.3), "interpolation": "bilinear"}
    assert loaded.architecture.library == "transformers"
    assert adapt(loaded.model).num_classes == 5


def test_a_bare_model_is_pruned_saved_and_loaded(tmp_path):
    adapted = adapt(make_model())
    plan = make_plan({site.name: torch.rand(96) for site in adapted.sites}, sites=adapted.sites, ratio=0.5)
    pruned = prune(adapted, plan=plan).model
    with pytest.raises(ValueError, match=r"the preprocessing of .* is unknown; pass data_config"):
        save_pruned(pruned, tmp_path / "pruned")
    again = load_pruned(save_pruned(pruned, tmp_path / "pruned", data_config=DATA_CONFIG))
    assert torch.equal(logits(again), logits(pruned))
    assert read_pruned_config(tmp_path / "pruned").class_names == tuple(NAMES)
    loaded = load_model(str(tmp_path / "pruned"))
    assert loaded.data_config == DATA_CONFIG
    assert loaded.class_names == tuple(NAMES)
    # the Transformers model inside is narrowed and returns its own output class
    assert pruned.model.vit.layers[0].mlp.fc1.out_features == 48
    assert torch.equal(pruned.model(IMAGES).logits, logits(pruned))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True},
            {"crop_mode": "center", "crop_pct": 0.8},
        ),
        (
            {"size": {"height": 64, "width": 64}, "crop_size": 32, "do_center_crop": True, "resample": 3},
            {"crop_mode": "squash", "crop_pct": 0.5, "interpolation": "bicubic"},
        ),
        ({"size": 32, "do_normalize": False}, {"crop_mode": "center", "mean": (0.0,) * 3, "std": (1.0,) * 3}),
    ],
)
def test_an_image_processor_is_translated_for_timm(folder, settings, expected):
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    config = load_model(str(folder)).data_config
    assert {key: config[key] for key in expected} == expected


def test_a_missing_image_processor_gives_a_warning(folder, caplog):
    (folder / "preprocessor_config.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert load_model(str(folder)).data_config["mean"] == (0.5, 0.5, 0.5)
    assert "assuming a mean and standard deviation of 0.5" in caplog.text


def test_other_weights_for_the_same_config(folder, tmp_path):
    other = make_model()
    nn.init.ones_(other.classifier.bias)
    torch.save({"state_dict": {f"module.{k}": v for k, v in other.state_dict().items()}}, tmp_path / "weights.pth")
    assert torch.equal(logits(load_model(str(folder), checkpoint=tmp_path / "weights.pth").model), logits(other))
    wide = HF_FAMILIES["hf-vit"].make().model
    wide.classifier = nn.Linear(24, 9)
    torch.save(wide.state_dict(), tmp_path / "wide.pth")
    assert load_model(str(folder), checkpoint=tmp_path / "wide.pth").model(IMAGES).shape == (2, 9)
    with pytest.raises(ValueError, match=r"names of Transformers: pass the folder that save_pretrained wrote"):
        load_model("vit_tiny_patch16_224", checkpoint=folder)
    random = load_model(str(folder), pretrained=False, num_classes=7).model
    assert logits(random).shape == (2, 7)


def test_the_vision_tower_of_a_model_with_two_towers_is_loaded(tmp_path):
    tower = HF_FAMILIES["hf-clip-embedding"].config
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    text |= {"vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = transformers.CLIPConfig(vision_config=tower, text_config=text, projection_dim=7)
    both = randomise(transformers.CLIPModel(config)).eval()
    both.save_pretrained(tmp_path / "clip")
    model = load_model(str(tmp_path / "clip")).model
    with torch.no_grad():
        assert torch.allclose(model(IMAGES), both.get_image_features(IMAGES).pooler_output, atol=1e-6)
    with pytest.raises(UnsupportedModelError, match="it has a text tower: pass its `vision_model` alone"):
        adapt(both)


def test_mistakes_give_one_clear_line(folder, tmp_path):
    def refused(message, source=folder, **arguments):
        with pytest.raises(ValueError, match=message) as caught:
            load_model(str(source), **arguments)
        assert "\n" not in str(caught.value)

    refused(r"head of 5 classes, num_classes asks for 9; remove", num_classes=9)
    refused(r"num_classes=0 is for timm models", num_classes=0)
    refused(r"takes images of 32 × 32 px, not 64 × 64", image_size=64)
    refused(r"model argument 'nonsense' is not a key of ViTConfig", model_args={"nonsense": 1})
    refused(
        r"model argument hidden_size='wide' is invalid: .* expected int, got str", model_args={"hidden_size": "wide"}
    )
    config = json.loads((folder / "config.json").read_text())
    for changed, message in (
        ({"architectures": ["NoSuchModel"]}, "names NoSuchModel, which Transformers does not have"),
        ({"model_type": "nonsense"}, r"Transformers cannot read the config"),
        ({"hidden_size": "wide"}, r"Transformers cannot read the config .* expected int, got str"),
        ({"architectures": ["ViTModel"]}, r"no matching weights for .*pooler.* of a ViTModel; train them first"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changed))
        refused(message)


def test_a_config_can_only_name_a_model_class(tmp_path):
    adapted = adapt(make_model())
    save_pruned(adapted.model, tmp_path / "pruned", data_config=DATA_CONFIG)
    file = tmp_path / "pruned" / "config.json"
    content = json.loads(file.read_text())
    content["pathprune"]["base"]["name"] = "Trainer"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has no model class Trainer"):
        load_pruned(tmp_path / "pruned")


def test_pruning_does_not_change_the_dense_model():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    adapted = adapt(model)
    prune(adapted, plan=make_plan({s.name: torch.rand(96) for s in adapted.sites}, sites=adapted.sites, ratio=0.5))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
