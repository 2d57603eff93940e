"""Located paths against the published numbers, the literal definition and its axioms; refused settings."""

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from reference import Reference
from safetensors import safe_open
from tiny_vit import ARGS, VIT, build_vit, draw_images
from torch import nn

from pathprune.mining import locate_paths, score_paths, split_layers
from pathprune.models.adapt import adapt

GOLDEN = Path(__file__).parents[1] / "fixtures" / "jas_tiny.safetensors"
MODELS = {
    "plain": {},
    "layer-scale": {"init_values": 0.3},
    "registers": {"reg_tokens": 4},
    "distilled": {"architecture": "deit_tiny_distilled_patch16_224"},
    "depth-1": {"depth": 1},
    "widths-differ": {"widths": (20, 48, 33)},
    "average-pool": {"global_pool": "avg", "class_token": False},
    "no-classifier": {"num_classes": 0},
}


def build_model(name: str) -> nn.Module:
    return build_vit(**MODELS[name])


def build_references(name, model, images, mined, tokens, *quadrature):
    """Yield one reference per image, with the package's default objective for the model."""
    num_tokens = model.num_prefix_tokens + model.patch_embed.num_patches
    rows = list(range(num_tokens)) if tokens == "all" else [0, 1] if name == "distilled" else [0]
    for image, target in zip(images, mined.targets.tolist(), strict=True):
        if model.num_classes:
            yield Reference(model, image, lambda out, y=target: out.softmax(-1)[0, y], rows, *quadrature)
        else:
            clean = model(image[None])[0].detach()
            cosine = nn.CosineSimilarity(dim=0)
            yield Reference(model, image, lambda out, e=clean, cosine=cosine: cosine(out[0], e), rows, *quadrature)


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        arguments = json.loads(file.metadata()["timm_model"])
    model = timm.models.VisionTransformer(**arguments).double()
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    return adapt(model), tensors


def test_published_scores_and_paths_are_reproduced(golden):
    adapted, expected = golden
    mined = locate_paths(adapted, expected["images"], expected["target"], rule="left-riemann", nodes=20)
    torch.testing.assert_close(mined.scores, expected["scores"], rtol=1e-10, atol=0)
    torch.testing.assert_close(mined.jas, expected["path_score"], rtol=1e-10, atol=0)
    assert torch.equal(mined.paths.squeeze(-1), expected["path"])
    assert torch.equal(mined.targets, expected["target"])


def test_published_activation_paths_are_reproduced(golden):
    adapted, expected = golden
    settings = {"method": "activation", "rule": "left-riemann", "nodes": 20}
    mined = locate_paths(adapted, expected["images"], expected["target"], **settings)
    torch.testing.assert_close(mined.scores, expected["class_activations"], rtol=1e-10, atol=0)
    torch.testing.assert_close(mined.jas, expected["activation_path_score"], rtol=1e-10, atol=0)
    assert torch.equal(mined.paths.squeeze(-1), expected["activation_path"])


CASES = [
    *[(name, "class", "gauss-legendre", 2, None, 1) for name in MODELS if name != "average-pool"],
    *[(name, "all", "left-riemann", 3, None, 1) for name in MODELS],
    ("plain", "class", "left-riemann", 3, None, 3),
    ("plain", "class", "gauss-legendre", 3, 2, 1),
    ("distilled", "all", "gauss-legendre", 2, 5, 3),
    ("widths-differ", "class", "gauss-legendre", 1, 3, 2),
    ("depth-1", "class", "left-riemann", 2, 4, 1),
]


@pytest.mark.parametrize(("name", "tokens", "rule", "nodes", "first_nodes", "top_k"), CASES)
def test_location_agrees_with_the_literal_definition(name, tokens, rule, nodes, first_nodes, top_k):
    model, images = build_model(name), draw_images(2)
    settings = {"rule": rule, "nodes": nodes, "first_nodes": first_nodes, "top_k": top_k, "tokens": tokens}
    mined = locate_paths(adapt(model), images, **settings)
    for image, reference in enumerate(build_references(name, model, images, mined, tokens, rule, nodes, first_nodes)):
        chosen, scores, own = reference.locate(top_k)
        assert mined.paths[image].tolist() == chosen
        for layer, (score_W, own_W) in enumerate(zip(scores, own, strict=True)):
            tolerance = {"rtol": 1e-10, "atol": 1e-12 * score_W.abs().max().item()}
            torch.testing.assert_close(split_layers(mined.scores)[layer][image], score_W, **tolerance)
            torch.testing.assert_close(split_layers(mined.own)[layer][image], own_W, rtol=1e-10, atol=1e-14)
        jas = reference.score_path([neurons[0] for neurons in chosen])
        torch.testing.assert_close(mined.jas[image], jas, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "tokens"), [("plain", "class"), ("distilled", "class"), ("widths-differ", "all"), ("depth-1", "class")]
)
@pytest.mark.parametrize("method", ["activation", "influence-pattern"])
def test_baselines_agree_with_the_literal_definition(name, tokens, method):
    model, images = build_model(name), draw_images(2)
    mined = locate_paths(adapt(model), images, method=method, rule="left-riemann", nodes=3, top_k=2, tokens=tokens)
    for image, reference in enumerate(build_references(name, model, images, mined, tokens, "left-riemann", 3)):
        if method == "activation":
            scores = own = [a.sum(0) for a in reference.activations]
        else:
            gradients = reference.average_gradients()
            scores = [g.sum(0) for g in gradients]
            own = [(a * g).sum(0) for a, g in zip(reference.activations, gradients, strict=True)]
        for layer, (score_W, own_W) in enumerate(zip(scores, own, strict=True)):
            torch.testing.assert_close(split_layers(mined.scores)[layer][image], score_W, rtol=1e-10, atol=1e-14)
            torch.testing.assert_close(split_layers(mined.own)[layer][image], own_W, rtol=1e-10, atol=1e-14)
            assert mined.paths[image, layer].tolist() == score_W.argsort(descending=True)[:2].tolist()
        jas = reference.score_path(mined.paths[image, :, 0].tolist())
        torch.testing.assert_close(mined.jas[image], jas, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("method", ["jas", "activation", "influence-pattern"])
def test_a_batch_is_mined_like_its_images_one_by_one(method):
    adapted, images = adapt(build_model("registers")), draw_images(4)
    targets = torch.tensor([0, 4, 2, 2])
    batch = locate_paths(adapted, images, targets, method=method, top_k=2)
    for i in range(4):
        single = locate_paths(adapted, images[i : i + 1], targets[i : i + 1], method=method, top_k=2)
        assert torch.equal(batch.paths[i], single.paths[0])
        torch.testing.assert_close(batch.scores[i], single.scores[0], rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(batch.jas[i], single.jas[0], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("method", ["jas", "activation"])
@pytest.mark.parametrize("tokens", ["class", "all"])
def test_the_score_of_a_given_path_equals_that_of_the_located_path(method, tokens):
    adapted, images, targets = adapt(build_model("plain")), draw_images(5), torch.tensor([0, 1, 2, 0, 1])
    mined = locate_paths(adapted, images, targets, method=method, tokens=tokens)
    scores = score_paths(adapted, images, mined.paths[:, :, 0], targets, tokens=tokens)
    torch.testing.assert_close(scores, mined.jas)


def test_paths_of_another_shape_are_not_scored():
    with pytest.raises(ValueError, match=r"paths have shape \[5, 2\]; expected \[5, 3\]"):
        score_paths(adapt(build_model("plain")), draw_images(5), torch.zeros(5, 2, dtype=torch.int64))


def test_one_node_gives_the_closed_form_of_a_linear_objective():
    model, images = build_model("depth-1"), draw_images(3)
    model.norm = nn.Identity()  # one block, no norm: a class's logit is linear in the class token's hidden activations
    mined = locate_paths(adapt(model), images, nodes=1, objective=lambda logits: logits[:, 3])
    a = Reference(model, images[0], None, [0], "left-riemann", 1).activations[0][0]
    expected = a * (model.head.weight[3] @ model.blocks[0].mlp.fc2.weight)
    torch.testing.assert_close(mined.scores[0, 0], expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(mined.own[0, 0], expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(mined.jas, mined.scores[:, 0].max(1).values, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("name", "tokens"), [("plain", "class"), ("distilled", "class"), ("average-pool", "all")])
def test_own_terms_of_the_first_layer_sum_to_the_effect_of_clamping_it_to_zero(name, tokens):
    model, images = build_model(name), draw_images(2)
    mined = locate_paths(adapt(model), images, nodes=40, tokens=tokens)
    for i, reference in enumerate(build_references(name, model, images, mined, tokens, "left-riemann", 1)):
        difference = reference.evaluate({}) - reference.evaluate({0: torch.zeros_like(reference.activations[0])})
        torch.testing.assert_close(split_layers(mined.own)[0][i].sum(), difference, rtol=1e-8, atol=1e-10)


def test_mass_is_the_normalised_own_term():
    mined = locate_paths(adapt(build_model("plain")), draw_images(2))
    torch.testing.assert_close(mined.mass, mined.own.abs() / mined.own.abs().sum(-1, keepdim=True))


def test_four_gauss_legendre_nodes_are_closer_to_the_integral_than_the_published_rule(golden):
    adapted, expected = golden

    def scores(rule, nodes):
        return locate_paths(adapted, expected["images"], expected["target"], rule=rule, nodes=nodes).scores[:, 0]

    integral = scores("gauss-legendre", 32)
    four = (scores("gauss-legendre", 4) - integral).norm()
    published = (scores("left-riemann", 20) - integral).norm()
    assert four < 0.01 * integral.norm()
    assert four < published / 10


def test_targets_default_to_the_predictions():
    model, images = build_model("plain"), draw_images(4)
    mined = locate_paths(adapt(model), images)
    assert torch.equal(mined.predictions, model(images).argmax(1))
    explained = locate_paths(adapt(model), images, mined.predictions)
    assert torch.equal(mined.scores, explained.scores)
    other = (mined.predictions + 1) % 5
    assert torch.equal(locate_paths(adapt(model), images, other).targets, other)
    assert not torch.equal(mined.scores, locate_paths(adapt(model), images, other).scores)


@pytest.mark.parametrize("method", ["jas", "activation", "influence-pattern"])
def test_the_model_is_left_unchanged(method):
    torch.manual_seed(0)
    model = timm.create_model(VIT, **ARGS, proj_drop_rate=0.5).double()
    model.train()
    model.blocks[0].eval()
    model.head.weight.requires_grad_(False)
    before = copy.deepcopy(model)
    images = draw_images(2)
    mined = locate_paths(adapt(model), images, method=method)
    assert torch.equal(mined.jas, locate_paths(adapt(model), images, method=method).jas)  # no dropout
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    for parameter, old in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, old)
        assert parameter.requires_grad == old.requires_grad
        assert parameter.grad is None
    assert not images.requires_grad
    assert not mined.jas.requires_grad


@pytest.mark.parametrize("method", ["jas", "influence-pattern"])
def test_mixed_precision_blocks_keep_float32_scores_close(method):
    model, images = build_model("layer-scale").float(), draw_images(4).float()
    exact = locate_paths(adapt(model), images, method=method)
    mixed = locate_paths(adapt(model), images, method=method, dtype=torch.bfloat16)
    assert mixed.scores.dtype == mixed.jas.dtype == torch.float32
    assert not torch.equal(exact.scores, mixed.scores)
    for layer in range(3):
        pair = torch.stack([exact.own[:, layer].flatten(), mixed.own[:, layer].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.99


@pytest.mark.parametrize("tokens", ["class", "all"])
def test_a_bfloat16_model_is_mined_with_float32_scores(tokens):
    model, images = build_model("layer-scale").float(), draw_images(4).float()
    exact = locate_paths(adapt(model), images, tokens=tokens)
    lowered = locate_paths(adapt(model.bfloat16()), images.bfloat16(), exact.targets, tokens=tokens)
    assert lowered.scores.dtype == lowered.jas.dtype == torch.float32
    for layer in range(3):
        pair = torch.stack([exact.own[:, layer].flatten(), lowered.own[:, layer].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.95


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "saliency"}, "unknown mining method 'saliency'; choose from jas, activation, influence-pattern"),
        ({"rule": "simpson"}, "unknown quadrature rule 'simpson'; choose from gauss-legendre, left-riemann"),
        ({"tokens": "patch"}, "unknown tokens 'patch'; choose from class, all"),
        ({"nodes": 0}, "nodes=0"),
        ({"top_k": 0}, "top_k=0 is out of range: choose 1 to 48"),
        ({"top_k": 49}, "top_k=49 is out of range: choose 1 to 48, the width of blocks.0.mlp.fc2"),
        ({"targets": torch.tensor([0, 5])}, "target 5 is out of range: there are 5 classes"),
        ({"targets": torch.tensor([-1, 0])}, "target -1 is out of range"),
        ({"targets": torch.tensor([1])}, r"shape \[1\]; expected one integer class for each of the 2 images"),
        ({"targets": torch.tensor([1.0, 2.0])}, "targets are torch.float32"),
        ({"images": torch.zeros(3, 16, 16, dtype=torch.float64)}, r"shape \[3, 16, 16\]; expected \[B, C, H, W\]"),
        ({"images": torch.zeros(2, 3, 16, 16)}, "images are torch.float32 but the model is torch.float64"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        locate_paths(adapt(build_model("plain")), **{"images": draw_images(2), **settings})


def test_class_tokens_are_refused_for_a_pooling_head():
    with pytest.raises(ValueError, match="use tokens='all'"):
        locate_paths(adapt(build_model("average-pool")), draw_images())


def test_targets_are_refused_without_a_classifier():
    with pytest.raises(ValueError, match="no classifier"):
        locate_paths(adapt(build_model("no-classifier")), draw_images(1), torch.tensor([0]))


def test_the_block_of_activations_that_are_not_finite_is_named():
    model = build_model("plain")
    model.blocks[1].mlp.fc1.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"block 1 \(blocks.1.mlp.fc2\)"):
        locate_paths(adapt(model), draw_images(1))
