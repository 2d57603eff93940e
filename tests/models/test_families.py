"""Every family end to end: mining, scoring, pruning by half, compensation, saving and loading."""

import logging

import pytest
import torch
from torch import nn

from pathprune.mining import locate_paths
from pathprune.models.adapt import adapt
from pathprune.models.checkpoint import load_pruned, save_pruned
from pathprune.models.seam import AdaptedModel
from pathprune.pruning import PrunePlan, make_plan, prune
from pathprune.pruning.masking import mask_neurons
from pathprune.scoring import ScoringContext, collect_statistics, score
from tests.families import FAMILIES


def draw_images(adapted: AdaptedModel, count: int = 3) -> torch.Tensor:
    return torch.randn(count, *adapted.input_size, generator=torch.Generator().manual_seed(1))


def plan_by_paths(adapted: AdaptedModel, images: torch.Tensor) -> PrunePlan:
    """Keep the half of the neurons with the most attribution mass over all tokens."""
    mass = locate_paths(adapted, images, tokens="all", nodes=2).mass
    by_layer = mass if isinstance(mass, list) else mass.unbind(1)
    scores = {site.name: layer.mean(0) for site, layer in zip(adapted.sites, by_layer, strict=True)}
    return make_plan(scores, sites=adapted.sites, ratio=0.5)


@torch.no_grad()
def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(images)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_mined_pruned_saved_and_loaded(name, tmp_path, caplog):
    family = FAMILIES[name]
    adapted = adapt(family.make())
    images = draw_images(adapted)
    plan = plan_by_paths(adapted, images)
    dense = {site.name: site.width for site in adapted.sites}
    with caplog.at_level(logging.WARNING):
        pruned = prune(adapted, plan=plan)
    assert all(abs(dense[site.name] / 2 - site.width) < 1 for site in pruned.sites)
    assert {site.name: site.width for site in adapted.sites} == dense
    narrow, unmasked = logits(pruned.model, images), logits(adapted.model, images)
    with mask_neurons(adapted, plan=plan):
        expected = logits(adapted.model, images)
    assert (unmasked - expected).abs().max() > 1e-3 * unmasked.abs().max()  # the removed neurons matter
    if family.has_norm:
        assert "inner norm, which now normalises over fewer neurons" in caplog.text
        assert not torch.allclose(narrow, expected, rtol=1e-3, atol=1e-3)
    else:
        # Transformers warns of its own configs' token ids, which pruning does not touch
        assert not [record for record in caplog.records if record.name.startswith("pathprune")]
        torch.testing.assert_close(narrow, expected, rtol=1e-5, atol=1e-5)
    again = load_pruned(save_pruned(pruned.model, tmp_path / "pruned"))
    torch.testing.assert_close(logits(again, images), narrow, rtol=1e-6, atol=1e-6)
    assert [site.width for site in adapt(again).sites] == [site.width for site in pruned.sites]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_of_criterion_scores_every_neuron(name):
    adapted = adapt(FAMILIES[name].make())
    batches = [(draw_images(adapted, 4), torch.tensor([0, 1, 2, 3]))]
    statistics = collect_statistics(adapted, batches, covariance=True)
    context = ScoringContext(adapted=adapted, batches=batches, mined={}, statistics=statistics, seed=0)
    labelled = ("taylor", "output-sensitivity") if adapted.num_classes else ()
    for criterion in ("magnitude-l2", *labelled):
        scores = score(context, criterion=criterion)
        assert {site: len(values) for site, values in scores.items()} == {s.name: s.width for s in adapted.sites}
        assert all(values.std() > 0 for values in scores.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_compensation_brings_the_logits_nearer_to_the_dense_ones(name):
    family = FAMILIES[name]
    adapted = adapt(family.make())
    images = draw_images(adapted, 24)
    batches = [(images, torch.zeros(24, dtype=torch.int64))]
    plan = plan_by_paths(adapted, images[:3])
    statistics = collect_statistics(adapted, batches, covariance=True)

    def error(compensation: str) -> float:
        pruned = prune(adapted, plan=plan, compensation=compensation, statistics=statistics, batches=batches)
        return float((logits(pruned.model, images) - logits(adapted.model, images)).square().mean())

    without = error("none")
    if not family.has_norm:  # the statistics of the dense model do not hold behind a narrowed norm
        assert error("least-squares") < without
    if family.is_scaled:
        assert error("sequential") < without
    else:
        with pytest.raises(ValueError, match=r"'sequential' needs pre-norm blocks.*use least-squares"):
            error("sequential")
