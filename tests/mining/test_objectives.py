"""Objectives against the literal definition or a closed form; refused zero-shot heads."""

import json
from functools import partial

import pytest
import torch
from reference import Reference
from safetensors.torch import save_file
from tiny_vit import build_vit, draw_images
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


def build_tower(num_classes: int = 0, depth: int = 2) -> nn.Module:
    return build_vit(num_classes=num_classes, depth=depth)


def compute_zero_shot(embedding: torch.Tensor, target: int) -> torch.Tensor:
    cosines = torch.stack([embedding @ text / (embedding.norm() * text.norm()) for text in TEXT])
    return (7 * cosines).exp()[target] / (7 * cosines).exp().sum()


BY_HAND = {
    "zero-shot": (0, ZeroShot(TEXT, 7.0), lambda out, y: compute_zero_shot(out[0], y)),
    "label-probability": (5, LabelProbability(), lambda out, y: 1 / (1 + (-out[0, y]).exp())),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("tokens", ["class", "all"])
def test_paths_of_an_objective_agree_with_the_literal_definition(name, tokens):
    num_classes, objective, by_hand = BY_HAND[name]
    model, images, targets = build_tower(num_classes), draw_images(2), torch.tensor([3, 1])
    mined = locate_paths(adapt(model), images, targets, nodes=2, tokens=tokens, objective=objective)
    for image, target in enumerate(targets.tolist()):
        rows = [0] if tokens == "class" else list(range(5))
        reference = Reference(model, images[image], partial(by_hand, y=target), rows, "gauss-legendre", 2)
        chosen, scores, own = reference.locate(1)
        assert mined.paths[image].tolist() == chosen
        torch.testing.assert_close(mined.scores[image], torch.stack(scores), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(mined.own[image], torch.stack(own), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            mined.jas[image], reference.score_path([row[0] for row in chosen]), rtol=1e-9, atol=1e-12
        )


def test_own_terms_of_a_sigmoid_on_a_linear_model_have_a_closed_form():
    model, images = build_tower(5, depth=1), draw_images(3)
    model.norm = (
        nn.Identity()
    )  # one block, no norm: a class's logit is z + ⟨a, w⟩ in the class token's hidden activations a
    targets = torch.tensor([3, 0, 4])
    mined = locate_paths(adapt(model), images, targets, nodes=24, objective=LabelProbability())
    logits = model(images)[range(3), targets]
    for image, target in enumerate(targets.tolist()):
        a = Reference(model, images[image], None, [0], "left-riemann", 1).activations[0][0]
        contribution = a * (model.head.weight[target] @ model.blocks[0].mlp.fc2.weight)
        # ∫ σ'(z + α·s) dα · a_j w_j = (σ(z + s) − σ(z)) / s · a_j w_j, where s = ⟨a, w⟩
        rise = logits[image].sigmoid() - (logits[image] - contribution.sum()).sigmoid()
        torch.testing.assert_close(mined.own[image, 0], contribution * rise / contribution.sum(), rtol=1e-8, atol=1e-14)


def test_a_zero_shot_head_predicts_the_nearest_text():
    model, images = build_tower(), draw_images(6)
    text = model(images).detach().flip(0) + 0.01
    mined = locate_paths(adapt(model), images, objective=ZeroShot(text))
    assert mined.predictions.tolist() == mined.targets.tolist() == [5, 4, 3, 2, 1, 0]


def test_text_embeddings_may_have_any_length():
    model, images = build_tower(), draw_images(2)
    lengths = torch.tensor([[0.1], [1.0], [20.0], [3.0]], dtype=torch.float64)
    first, second = (
        locate_paths(adapt(model), images, objective=ZeroShot(text)) for text in (TEXT, (lengths * TEXT).float())
    )
    torch.testing.assert_close(first.scores, second.scores, rtol=1e-4, atol=1e-6)


def test_a_tower_is_explained_by_the_clean_cosine_by_default():
    adapted, images = adapt(build_tower()), draw_images(2)
    default, cosine = locate_paths(adapted, images), locate_paths(adapted, images, objective=CleanCosine())
    assert torch.equal(default.scores, cosine.scores)
    assert default.targets.tolist() == default.predictions.tolist() == [-1, -1]
    assert not torch.equal(default.scores, locate_paths(adapted, images, objective=ZeroShot(TEXT)).scores)


def test_a_head_of_another_tower_is_refused():
    with pytest.raises(ValueError, match="text embeddings have dimension 24, but the model's output has 5"):
        locate_paths(adapt(build_tower(5)), draw_images(1), objective=ZeroShot(TEXT))
    with pytest.raises(ValueError, match="target 4 is out of range: there are 4 classes"):
        locate_paths(adapt(build_tower()), draw_images(1), torch.tensor([4]), objective=ZeroShot(TEXT))


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


def test_files_of_another_kind_are_refused_as_heads(tmp_path):
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
def test_bad_objectives_of_a_recipe_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig.model_validate(given)


def test_an_objective_may_be_given_by_its_name_alone():
    assert ObjectiveConfig.model_validate("cosine").build() == CleanCosine()


def test_a_zero_shot_head_is_exact_in_mixed_precision() -> None:
    """In bfloat16, neighbouring values of 100 times a cosine are up to 0.5 apart, so that many would tie."""
    model, head = build_tower().float(), ZeroShot(TEXT.float(), 100.0)
    images = draw_images().float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits, embedding = ZeroShotClassifier(model, head)(images), model(images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, head.class_logits(embedding.float()))
