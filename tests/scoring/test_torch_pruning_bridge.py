"""Tests of torch-pruning's importances by hand, over the whole loader, on a model that stays unchanged."""

from typing import NamedTuple

import pytest
import timm
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel
from pathprune.scoring import ScoringContext, score, score_importance

TINY = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 5}
GRADIENT = ["taylor", "hessian"]
NO_GRADIENT = ["magnitude-l1", "magnitude-l2", "lamp", "fpgm"]


def make_model(*, dtype: torch.dtype = torch.float64) -> AdaptedModel:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **TINY, init_values=0.5).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return adapt(model)


def draw_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 16, 16, generator=generator, dtype=torch.float64)
    return images, torch.randint(5, (8,), generator=generator)


def make_context(adapted: AdaptedModel, *, batch_size: int = 3) -> ScoringContext:
    images, labels = draw_data()
    batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    return ScoringContext(adapted, batches=batches)


class Mlp(NamedTuple):
    site: str
    fc1: nn.Linear
    fc2: nn.Linear


def list_mlps(adapted: AdaptedModel) -> list[Mlp]:
    return [Mlp(site.name, adapted.model.blocks[site.block].mlp.fc1, site.down) for site in adapted.sites]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-5, atol=0)  # torch-pruning reduces in float32


@pytest.mark.parametrize(("name", "power"), [("magnitude-l1", 1), ("magnitude-l2", 2)])
def test_magnitude_is_the_mean_of_both_layers_norms(name, power):
    adapted = make_model()
    scores = score(make_context(adapted), criterion=name)
    for site, fc1, fc2 in list_mlps(adapted):
        rows = torch.linalg.vector_norm(fc1.weight, ord=power, dim=1) ** power
        columns = torch.linalg.vector_norm(fc2.weight, ord=power, dim=0) ** power
        assert_close(scores[site], (rows + columns) / 2)


def test_lamp_is_a_share_of_all_magnitudes_no_smaller():
    adapted = make_model()
    scores, magnitude = (score(make_context(adapted), criterion=name) for name in ("lamp", "magnitude-l2"))
    for site, values in magnitude.items():
        assert_close(scores[site], torch.stack([value / values[values >= value].sum() for value in values]))
        assert scores[site].max() == pytest.approx(1.0, abs=1e-5)


def test_fpgm_is_the_summed_distance_to_the_other_neurons():
    adapted = make_model()
    scores = score(make_context(adapted), criterion="fpgm")
    for site, fc1, fc2 in list_mlps(adapted):
        rows, columns = fc1.weight.square(), fc2.weight.T.square()
        expected = [
            sum((w[j] - w[i]).norm() for w in (rows, columns) for i in range(len(w))) / 2 for j in range(len(rows))
        ]
        assert_close(scores[site], torch.stack(expected))


@pytest.mark.parametrize("multivariable", [False, True])
def test_taylor_is_weight_times_gradient_of_the_mean_loss(multivariable):
    adapted = make_model()
    scores = score(make_context(adapted), criterion={"name": "taylor", "multivariable": multivariable})
    images, labels = draw_data()
    adapted.model.eval()
    cross_entropy(adapted.model(images), labels).backward()
    for site, fc1, fc2 in list_mlps(adapted):
        terms = fc1.weight * fc1.weight.grad, (fc2.weight * fc2.weight.grad).T
        parts = [term.sum(1).abs() if multivariable else term.abs().sum(1) for term in terms]
        assert_close(scores[site], sum(parts) / 2)


def test_hessian_is_squared_weight_times_the_mean_of_every_images_squared_gradient():
    adapted = make_model()
    scores = score(make_context(adapted), criterion="hessian")
    adapted.model.eval()
    squares = {layer: torch.zeros_like(layer.weight) for _, fc1, fc2 in list_mlps(adapted) for layer in (fc1, fc2)}
    for image, label in zip(*draw_data(), strict=True):
        adapted.model.zero_grad()
        cross_entropy(adapted.model(image[None]), label[None]).backward()
        for layer, total in squares.items():
            total += layer.weight.grad.square() / 8
    for site, fc1, fc2 in list_mlps(adapted):
        terms = fc1.weight.square() * squares[fc1], (fc2.weight.square() * squares[fc2]).T
        assert_close(scores[site], sum(term.sum(1) for term in terms) / 2)


@pytest.mark.parametrize("name", GRADIENT)
def test_the_batch_size_does_not_matter_and_every_image_counts(name):
    adapted = make_model()
    one, four = (score(make_context(adapted, batch_size=size), criterion=name) for size in (1, 4))
    for site in one:
        assert_close(one[site], four[site])
    images, labels = draw_data()
    last = score(ScoringContext(adapted, batches=[(images[4:], labels[4:])]), criterion=name)
    assert any(not torch.allclose(one[site], last[site], rtol=0.01) for site in one)  # the first batch counts


@pytest.mark.parametrize("name", [*GRADIENT, *NO_GRADIENT])
def test_the_model_stays_unchanged(name):
    adapted = make_model()
    adapted.model.train()
    adapted.model.blocks[0].requires_grad_(False)
    before = {key: value.clone() for key, value in adapted.model.state_dict().items()}
    with torch.no_grad():
        score(make_context(adapted), criterion=name)
    assert all(torch.equal(value, before[key]) for key, value in adapted.model.state_dict().items())
    assert all(parameter.grad is None for parameter in adapted.model.parameters())
    assert [p.requires_grad for p in adapted.model.blocks.parameters()] == [False] * 14 + [True] * 14
    assert all(module.training for module in adapted.model.modules())
    assert not any(module._forward_hooks for module in adapted.model.modules())


@pytest.mark.parametrize("name", GRADIENT)
def test_a_half_precision_model_is_scored_in_single_precision(name):
    half, single = make_model(dtype=torch.bfloat16), make_model(dtype=torch.bfloat16)
    single.model.float()
    scores = [score(make_context(adapted), criterion=name) for adapted in (half, single)]
    for site in scores[0]:
        torch.testing.assert_close(scores[0][site], scores[1][site])


@pytest.mark.parametrize("name", GRADIENT)
def test_labels_out_of_range_and_empty_loaders_are_refused(name):
    adapted = make_model()
    images, labels = draw_data()
    with pytest.raises(ValueError, match=r"label 5 is out of range; the model has classes 0 … 4"):
        score(ScoringContext(adapted, batches=[(images, labels * 0 + 5)]), criterion=name)
    with pytest.raises(ValueError, match=r"label -1 is out of range"):
        score(ScoringContext(adapted, batches=[(images, labels * 0 - 1)]), criterion=name)
    with pytest.raises(ValueError, match="gradients need at least one labelled image"):
        score(ScoringContext(adapted), criterion=name)


def test_any_torch_pruning_importance_can_be_used():
    adapted = make_model()
    first = tp.importance.MagnitudeImportance(p=1, group_reduction="first", normalizer="max")
    scores = score_importance(adapted, importance=first)
    for site, _, fc2 in list_mlps(adapted):
        columns = fc2.weight.abs().sum(0)
        torch.testing.assert_close(scores[site], (columns / columns.max()).float())
