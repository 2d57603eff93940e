"""The worked examples of CONTRIBUTING.md: each is short, runs, and does what its docstring says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from pathprune.models import adapt as adapting
from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel, UnsupportedModelError
from pathprune.pruning import compensation as compensations
from pathprune.pruning import make_plan, prune
from pathprune.scoring import ActivationStatistics, ScoringContext, collect_statistics, criteria, score
from tests.families import FAMILIES, SMALL, randomise

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"


def example(heading: str) -> dict[str, Any]:
    """Run the Python code under a heading; returns the names that it defines."""
    section = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len(code.splitlines()) < 40
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, f"CONTRIBUTING.md, {heading}", "exec", dont_inherit=True), names)
    return names


@pytest.fixture
def adapted() -> AdaptedModel:
    return adapt(FAMILIES["vit"].make())


@pytest.fixture
def statistics(adapted: AdaptedModel) -> ActivationStatistics:
    images = torch.randn(6, *adapted.input_size, generator=torch.Generator().manual_seed(1))
    return collect_statistics(adapted, [(images, None)])


def test_the_criterion_scores_by_activation_and_column(
    adapted: AdaptedModel, statistics: ActivationStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteria._CRITERIA, "_classes", dict(criteria._CRITERIA._classes))
    example("Add a criterion")
    context = ScoringContext(adapted=adapted, statistics=statistics)
    found = score(context, criterion={"name": "reach", "norm": 1})
    site = adapted.sites[1]
    moments = statistics.sites[site.name]
    for neuron in (0, 5):
        size = float(moments.variance[neuron] + moments.mean[neuron] ** 2) ** 0.5
        column = float(site.down.weight[:, neuron].detach().double().abs().sum())
        assert float(found[site.name][neuron]) == pytest.approx(size * column)


def test_the_compensation_restores_the_variance_of_the_layer(
    adapted: AdaptedModel, statistics: ActivationStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compensations._COMPENSATIONS, "_classes", dict(compensations._COMPENSATIONS._classes))
    example("Add a compensation")
    scores = {site.name: torch.arange(site.width) for site in adapted.sites}
    plan = make_plan(scores, sites=adapted.sites, ratio=0.5)
    pruned = prune(adapted, plan=plan, compensation="rescale", statistics=statistics)
    for narrow, wide in zip(pruned.sites, adapted.sites, strict=True):
        variance = statistics.sites[wide.name].variance
        dense = (wide.down.weight.detach().double().square() * variance).sum()
        kept = (narrow.down.weight.detach().double().square() * variance[plan.kept[wide.name]]).sum()
        torch.testing.assert_close(kept, dense, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"shared_rel_pos": True, "rel_pos_type": "bias", "class_token": True, "global_pool": "token"},
    ],
    ids=["own-positions", "shared-positions"],
)
@torch.no_grad()
def test_the_family_runs_part_by_part_and_prunes_as_if_masked(
    args: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = randomise(timm.create_model("vit_relpos_small_patch16_224", **SMALL, **args)).eval()
    with pytest.raises(UnsupportedModelError):
        adapt(model)
    match = example("Add a model family")["match"]
    with pytest.raises(UnsupportedModelError, match="relative positions"):
        match(FAMILIES["vit"].make())
    monkeypatch.setattr(adapting, "_FAMILIES", (*adapting._FAMILIES, match))
    adapted = adapt(model)
    images = torch.randn(3, *adapted.input_size)
    scores = {site.name: torch.arange(site.width) for site in adapted.sites}
    plan = make_plan(scores, sites=adapted.sites, ratio=0.5)
    pruned = prune(adapted, plan=plan).model(images)
    for site in adapted.sites:
        site.down.weight[:, plan.pruned(site.name)] = 0
    torch.testing.assert_close(pruned, model(images), rtol=1e-5, atol=1e-5)
