"""Objectives: each against the literal definition or its closed form, and heads that cannot be used."""

import json

import pytest
import timm
import torch
from reference import Reference
from safetensors.torch import save_file
from torch import nn

from pathprune.mining import (
    CleanCosine,
    LabelProbability,
    ObjectiveConfig,
    ZeroShot,
    ZeroShotClassifier,
    locate_paths,
)
from pathprune.models.adapt import adapt

TEXT = torch.randn(4, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def tower(num_classes: int = 0, depth: int = 2) -> nn.Module:
    torch.manual_seed(0)
    args = {"img_size": 16, "patch_size": 8, "depth": depth, "embed_dim": 24, "num_heads": 2, "mlp_ratio": 2}
    model = timm.create_model("vit_tiny_patch16_224", **args, num_classes=num_classes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def some_images(number: int = 3) -> torch.Tensor:
    return torch.randn(number, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def zero_shot_by_hand(embedding: torch.Tensor, target: int) -> torch.Tensor:
    cosines = torch.stack([embedding @ text / (embedding.norm() * text.norm()) for text in TEXT])
    return (7 * cosines).exp()[target] / (7 * cosines).exp().sum()


BY_HAND = {
    "zero-shot": (0, ZeroShot(TEXT, 7.0), lambda out, y: zero_shot_by_hand(out[0], y)),
    "label-probability": (5, LabelProbability(), lambda out, y: 1 / (1 + (-out[0, y]).exp())),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("tokens", ["class", "all"])
def test_paths_of_an_objective_agree_with_the_literal_definition(name, tokens):
    num_classes, objective, by_hand = BY_HAND[name]
    model, images, targets = tower(num_classes), some_images(2), torch.tensor([3, 1])
    mined = locate_paths(adapt(model), images, targets, nodes=2, tokens=tokens, objective=objective)
    for image, target in enumerate(targets.tolist()):
        rows = [0] if tokens == "class" else list(range(5))
        readout = lambda out, y=target: by_hand(out, y)  # noqa: E731
        reference = Reference(model, images[image], readout, rows, "gauss-legendre", 2)
        chosen, scores, own = reference.locate(1)
        assert mined.paths[image].tolist() == chosen
        torch.testing.assert_close(mined.scores[image], torch.stack(scores), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(mined.own[image], torch.stack(own), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(mined.jas[image], reference.jas([row[0] for row in chosen]), rtol=1e-9, atol=1e-12)


def test_the_own_terms_of_a_sigmoid_on_a_linear_model_have_a_closed_form():
    model, images = tower(5, depth=1), some_images(3)
    model.norm = nn.Identity()  # one block, no norm: a class's logit is z + ⟨a, w⟩ in the class token's hidden row a
    targets = torch.tensor([3, 0, 4])
    mined = locate_paths(adapt(model), images, targets, nodes=24, objective=LabelProbability())
    logits = model(images)[range(3), targets]
    for image, target in enumerate(targets.tolist()):
        a = Reference(model, images[image], None, [0], "left-riemann", 1).activations[0][0]
        written = a * (model.head.weight[target] @ model.blocks[0].mlp.fc2.weight)
        # ∫ σ'(z + α·s) dα · a_j w_j = (σ(z + s) − σ(z)) / s · a_j w_j, where s = ⟨a, w⟩
        rise = logits[image].sigmoid() - (logits[image] - written.sum()).sigmoid()
        torch.testing.assert_close(mined.own[image, 0], written * rise / written.sum(), rtol=1e-8, atol=1e-14)


def test_predictions_of_a_zero_shot_head_are_its_nearest_texts():
    model, images = tower(), some_images(6)
    text = model(images).detach().flip(0) + 0.01
    mined = locate_paths(adapt(model), images, objective=ZeroShot(text))
    assert mined.predictions.tolist() == mined.targets.tolist() == [5, 4, 3, 2, 1, 0]


def test_neither_text_nor_image_embeddings_need_a_length_of_one():
    model, images = tower(), some_images(2)
    lengths = torch.tensor([[0.1], [1.0], [20.0], [3.0]], dtype=torch.float64)
    first, second = (
        locate_paths(adapt(model), images, objective=ZeroShot(text)) for text in (TEXT, (lengths * TEXT).float())
    )
    torch.testing.assert_close(first.scores, second.scores, rtol=1e-4, atol=1e-6)


def test_cosine_is_what_a_tower_is_explained_by_unless_another_objective_is_given():
    adapted, images = adapt(tower()), some_images(2)
    default, asked = locate_paths(adapted, images), locate_paths(adapted, images, objective=CleanCosine())
    assert torch.equal(default.scores, asked.scores)
    assert default.targets.tolist() == default.predictions.tolist() == [-1, -1]
    assert not torch.equal(default.scores, locate_paths(adapted, images, objective=ZeroShot(TEXT)).scores)


def test_a_head_of_another_tower_is_refused():
    with pytest.raises(ValueError, match="text embeddings have dimension 24, but the model's output has 5"):
        locate_paths(adapt(tower(5)), some_images(1), objective=ZeroShot(TEXT))
    with pytest.raises(ValueError, match="target 4 is out of range: there are 4 classes"):
        locate_paths(adapt(tower()), some_images(1), torch.tensor([4]), objective=ZeroShot(TEXT))


def test_a_head_is_read_from_a_file(tmp_path):
    file = tmp_path / "head.safetensors"
    save_file({"text_embeddings": TEXT}, file)
    assert (ZeroShot.load(file).logit_scale, ZeroShot.load(file).class_names) == (100, None)
    names = ["cat", "dog", "eel", "owl"]
    save_file({"text_embeddings": TEXT, "logit_scale": torch.tensor(7.0)}, file, {"class_names": json.dumps(names)})
    config = ObjectiveConfig(name="zero-shot", head=str(file))
    head = config.build()
    assert torch.equal(head.text_CK, TEXT)
    assert (head.logit_scale, head.class_names) == (7, tuple(names))
    before = config.spec()
    save_file({"text_embeddings": TEXT + 1e-3}, file)
    assert config.spec() != before
    file.rename(tmp_path / "elsewhere")
    save_file({"text_embeddings": TEXT + 1e-3}, file)
    moved = ObjectiveConfig(name="zero-shot", head=str(tmp_path / "elsewhere"))
    assert moved.spec() == config.spec()


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"text": TEXT}, {}, r"holds text; expected 'text_embeddings' \[C, K\]"),
        ({"text_embeddings": TEXT, "extra": TEXT + 1}, {}, "holds extra, text_embeddings; expected"),
        ({"text_embeddings": TEXT[0]}, {}, r"shape \[24\]; expected floats"),
        ({"text_embeddings": TEXT[:1]}, {}, "at least two classes"),
        ({"text_embeddings": TEXT * 0}, {}, "zero, NaN or infinite"),
        ({"text_embeddings": TEXT, "logit_scale": torch.ones(2)}, {}, r"logit_scale has shape \[2\]"),
        ({"text_embeddings": TEXT, "logit_scale": torch.tensor(-1.0)}, {}, "must be positive"),
        ({"text_embeddings": TEXT}, {"class_names": '["cat"]'}, "1 class names were given for 4"),
        ({"text_embeddings": TEXT}, {"class_names": "cat"}, "Expecting value"),
    ],
)
def test_unusable_heads_are_refused(tmp_path, tensors, metadata, message):
    file = tmp_path / "head.safetensors"
    save_file(tensors, file, metadata)
    with pytest.raises(ValueError, match=message):
        ZeroShot.load(file)


def test_files_that_are_no_heads_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist; give a safetensors file"):
        ZeroShot.load(tmp_path / "nothing")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        ZeroShot.load(tmp_path / "text")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "zero-shot"}, "needs a head"),
        ({"name": "cosine", "head": "x"}, "'cosine' takes no head"),
        ({"name": "logit"}, "class-probability"),
    ],
)
def test_objectives_of_a_recipe_are_checked(given, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig.model_validate(given)


def test_a_name_alone_makes_an_objective():
    assert ObjectiveConfig.model_validate("cosine").build() == CleanCosine()


def test_a_zero_shot_head_is_exact_in_mixed_precision() -> None:
    """In half precision, cosines times 100 lie an eighth or a quarter apart, and many tie."""
    model, head = tower().float(), ZeroShot(TEXT.float(), 100.0)
    images = some_images().float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found, embedding = ZeroShotClassifier(model, head)(images), model(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, head.class_logits(embedding.float()))
