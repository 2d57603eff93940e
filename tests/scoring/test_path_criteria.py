"""Tests of path criteria by hand, on two sites and three classes."""

import pytest
import torch
from torch import Tensor, nn

from pathprune.mining.class_stats import ClassStats
from pathprune.models.seam import NeuronSite
from pathprune.scoring import ScoringContext, parse_criterion, score

A, B = "blocks.0.mlp.fc2", "blocks.1.mlp.fc2"


class Sites:
    """The part of an adapted model that path criteria read."""

    def __init__(self, *widths: int) -> None:
        self.sites = tuple(NeuronSite(f"blocks.{i}.mlp.fc2", i, nn.Linear(w, 1)) for i, w in enumerate(widths))


def to_tensor(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def make_stats(
    *, num_images: tuple[int, ...] = (2, 4, 1), names: tuple[str, ...] = ("cat", "dog", "owl")
) -> ClassStats:
    return ClassStats(
        site_names=(A, B),
        class_names=names,
        num_images=torch.tensor(num_images),
        count=(to_tensor([[2, 0, 0], [0, 4, 0], [1, 0, 0]]), to_tensor([[1, 1], [2, 2], [0, 1]])),
        mass=(
            to_tensor([[1.0, 0.6, 0.4], [0.4, 3.2, 0.4], [0.5, 0.2, 0.3]]),
            to_tensor([[1.2, 0.8], [1, 3], [0.5, 0.5]]),
        ),
        published_mass=(to_tensor([[2, 0, 0], [4, 0, 0], [1, 0, 0]]), to_tensor([[1, 1], [0, 4], [0, 1]])),
    )


def score_by_paths(stats: ClassStats, *, tokens: str = "all", name: str = "path", **options) -> dict[str, list[float]]:
    context = ScoringContext(Sites(3, 2), mined={tokens: stats})
    scores = score(context, criterion=parse_criterion({"name": name, **options}))
    return {site: values.tolist() for site, values in scores.items()}


# mass per image -> A: cat .5 .3 .2, dog .1 .8 .1, owl .5 .2 .3; B: cat .6 .4, dog .25 .75, owl .5 .5
def test_mean_weighs_every_class_equally():
    scores = score_by_paths(make_stats())
    assert scores[A] == pytest.approx([1.1 / 3, 1.3 / 3, 0.6 / 3])
    assert scores[B] == pytest.approx([1.35 / 3, 1.65 / 3])


def test_max_takes_the_class_that_needs_a_neuron_most():
    scores = score_by_paths(make_stats(), reduce="max")
    assert scores[A] == pytest.approx([0.5, 0.8, 0.3])
    assert scores[B] == pytest.approx([0.6, 0.75])


@pytest.mark.parametrize("classes", [["cat", "owl"], [0, 2], [2, "cat"], ["0", "2"]])
def test_a_subset_of_classes_by_index_or_name(classes):
    assert score_by_paths(make_stats(), classes=classes)[A] == pytest.approx([0.5, 0.25, 0.25])


def test_class_weights_scale_the_mean_and_the_maximum():
    weights = {"dog": 3, 2: 0}
    assert score_by_paths(make_stats(), class_weights=weights)[A] == pytest.approx([0.8 / 4, 2.7 / 4, 0.5 / 4])
    assert score_by_paths(make_stats(), class_weights=weights, reduce="max")[A] == pytest.approx([0.5, 2.4, 0.3])
    assert score_by_paths(make_stats(), classes=["dog", "owl"], class_weights={"dog": 3})[A] == pytest.approx(
        [(0.3 + 0.5) / 4, (2.4 + 0.2) / 4, (0.3 + 0.3) / 4]
    )


def test_published_mass_reads_the_published_sums():
    assert score_by_paths(make_stats(), importance="published-mass")[A] == pytest.approx([1.0, 0, 0])


# count per image -> A: cat 1 0 0, dog 0 1 0, owl 1 0 0; B: cat .5 .5, dog .5 .5, owl 0 1
def test_count_breaks_ties_by_mass_only():
    scores = score_by_paths(make_stats(), importance="count", reduce="max")
    assert scores[A][1] > scores[A][0] > scores[A][2]  # counts 1, 1, 0; masses .8, .5
    scores = score_by_paths(make_stats(), importance="count", classes=["cat", "dog"])
    assert scores[B][1] > scores[B][0]  # counts .5, .5; masses .425, .575
    scores = score_by_paths(make_stats(), importance="count")
    means = {A: [2 / 3, 1 / 3, 0], B: [1 / 3, 2 / 3]}
    for site, counts in means.items():
        for value, count in zip(scores[site], counts, strict=True):
            assert count <= value + 1e-8 < count + 1 / 3  # less than the next count
    assert scores[A][0] < scores[B][1]  # a tie across sites: masses .37, .55


def test_equal_counts_everywhere_are_ordered_by_mass():
    stats = make_stats()
    stats.count = (torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64))
    by_mass = torch.tensor(score_by_paths(stats)[A]).argsort()
    assert torch.equal(torch.tensor(score_by_paths(stats, importance="count")[A]).argsort(), by_mass)


def test_a_class_without_images_is_left_out_with_a_warning(caplog):
    stats = make_stats(num_images=(2, 0, 1))
    for sums in (*stats.count, *stats.mass):
        sums[1] = 0
    assert score_by_paths(stats)[A] == pytest.approx([0.5, 0.25, 0.25])
    assert "no images were mined of 1 classes, left out of the scores: class 1 (dog)" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["dog", "owl"]}, r"no images of class 1 \(dog\) were mined; mine some, or leave the class out"),
        ({"class_weights": {"dog": 2}}, r"no images of class 1 \(dog\)"),
        ({"classes": [3]}, "class 3 does not exist; classes are 0 … 2"),
        ({"classes": [-1]}, "class -1 does not exist"),
        ({"classes": ["fox"]}, "class 'fox' does not exist; classes are cat, dog, owl"),
        ({"classes": [0, "cat"]}, r"class 0 \(cat\) is given twice"),
        ({"classes": ["cat"], "class_weights": {"owl": 2}}, r"weighs class 2 \(owl\), which is not among `classes`"),
        ({"classes": []}, "no class is left to score by"),
        ({"classes": ["cat"], "class_weights": {"cat": 0}}, "no class is left to score by"),
    ],
)
def test_class_options_without_a_possible_score_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        score_by_paths(make_stats(num_images=(2, 0, 1)), **options)


def test_a_class_of_weight_zero_needs_no_images():
    scores = score_by_paths(make_stats(num_images=(2, 0, 1)), class_weights={"dog": 0})
    assert scores[A] == pytest.approx([0.5, 0.25, 0.25])


def test_a_name_of_two_classes_is_refused():
    with pytest.raises(ValueError, match="2 classes are called 'crane'; give an index"):
        score_by_paths(make_stats(names=("crane", "crane", "owl")), classes=["crane"])


def test_path_class_needs_paths_of_the_class_token():
    assert parse_criterion("path").needs_mining == "all"
    assert parse_criterion("path-class").needs_mining == "class"
    assert score_by_paths(make_stats(), name="path-class", tokens="class") == score_by_paths(make_stats())
    with pytest.raises(ValueError, match=r"'path-class' needs .* tokens='class', but the context has 'all'"):
        score_by_paths(make_stats(), name="path-class")


def test_paths_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"criterion 'path': paths were mined on widths .* mine this model"):
        score(ScoringContext(Sites(3, 4), mined={"all": make_stats()}), criterion="path")
