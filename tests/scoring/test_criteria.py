"""Tests of the contract of a criterion: declared needs, checked scores, random scores."""

import pytest
import timm
import torch

from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel
from pathprune.scoring import Criterion, Scores, ScoringContext, get_criterion, list_criteria, score

TINY = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 5}


def make_model() -> AdaptedModel:
    return adapt(timm.create_model("vit_tiny_patch16_224", **TINY))


def test_random_scores_depend_on_the_seed_and_the_site_only():
    adapted = make_model()
    once, again, other = (score(ScoringContext(adapted, seed=seed), criterion="random") for seed in (0, 0, 1))
    (first, second) = once
    assert torch.equal(once[first], again[first])
    assert not torch.equal(once[first], other[first])
    assert not torch.equal(once[first], once[second])
    torch.manual_seed(5)
    assert torch.equal(score(ScoringContext(adapted), criterion="random")[second], once[second])


def test_criteria_declare_their_needs():
    needs = {name: get_criterion(name) for name in list_criteria()}
    assert {name for name, cls in needs.items() if cls.needs_labels} == {"taylor", "hessian", "snip"}
    assert {name for name, cls in needs.items() if cls.needs_statistics} == {
        *("variance", "variance-weighted", "output-sensitivity", "energy", "wanda", "obs", "path-obs")
    }
    with pytest.raises(ValueError, match="criterion 'variance' needs activation statistics"):
        score(ScoringContext(make_model()), criterion="variance")


class Constant(Criterion):
    """Fixed scores, to test the checks."""

    scores: dict

    def __call__(self, context: ScoringContext) -> Scores:
        return self.scores


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.1.mlp.fc2": None}, "no scores for blocks.1.mlp.fc2"),
        ({"blocks.7.mlp.fc2": torch.ones(96)}, "scores for blocks.7.mlp.fc2, which the model does not have"),
        ({"blocks.1.mlp.fc2": torch.ones(95)}, r"scores of blocks.1.mlp.fc2 have shape \[95\], but the site has 96"),
        ({"blocks.1.mlp.fc2": torch.ones(1, 96)}, r"scores of blocks.1.mlp.fc2 have shape \[1, 96\]"),
        ({"blocks.1.mlp.fc2": torch.ones(96).log() / 0}, "96 of 96 scores of blocks.1.mlp.fc2 are NaN or infinite"),
    ],
)
def test_scores_of_any_criterion_are_checked(change, message):
    Constant.name = "constant"
    scores = {"blocks.0.mlp.fc2": torch.ones(96), "blocks.1.mlp.fc2": torch.ones(96), **change}
    criterion = Constant(scores={name: values for name, values in scores.items() if values is not None})
    with pytest.raises(ValueError, match=f"criterion 'constant': {message}"):
        score(ScoringContext(make_model()), criterion=criterion)
