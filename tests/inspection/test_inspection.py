"""Inspection against counting by hand and against slow readings of its definitions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import timm
import torch
from torch import Tensor

from pathprune.inspection import (
    draw_random_paths,
    find_most_used,
    find_top_images,
    measure_effects,
    measure_overlap,
    order_classes,
    scale_paths,
)
from pathprune.mining import ClassProbability, locate_paths, score_paths
from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel


@pytest.fixture
def adapted() -> AdaptedModel:
    torch.manual_seed(0)
    args = {"img_size": 8, "patch_size": 4, "depth": 3, "embed_dim": 12, "num_heads": 2, "num_classes": 3}
    return adapt(timm.create_model("vit_tiny_patch16_224", **args).double().eval())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("method", ["jas", "activation"])
@pytest.mark.parametrize("tokens", ["class", "all"])
def test_the_score_of_a_given_path_is_that_of_the_located_one(
    adapted: AdaptedModel, images: Tensor, method: str, tokens: str
) -> None:
    targets = torch.tensor([0, 1, 2, 0, 1])
    mined = locate_paths(adapted, images, targets, method=method, tokens=tokens)
    scores = score_paths(adapted, images, mined.paths[:, :, 0], targets, tokens=tokens)
    torch.testing.assert_close(scores, mined.jas)
    with pytest.raises(ValueError, match=r"paths have shape \[5, 2\]; expected \[5, 3\]"):
        score_paths(adapted, images, mined.paths[:, :2, 0], targets)


def test_random_paths_have_different_neurons_and_follow_the_generator() -> None:
    def draw(seed: int) -> Tensor:
        return draw_random_paths([4, 6], num_images=50, top_k=3, generator=torch.Generator().manual_seed(seed))

    paths = draw(0)
    assert paths.shape == (50, 2, 3)
    assert all(len(set(layer)) == 3 for image in paths.tolist() for layer in image)
    assert [paths[:, layer].max() for layer in (0, 1)] == [3, 5]
    assert torch.equal(paths, draw(0))
    assert not torch.equal(paths, draw(1))


@pytest.mark.parametrize("rows", [None, (0,)])
def test_a_scaled_path_is_scaled_for_its_own_image_and_tokens_alone(
    adapted: AdaptedModel, images: Tensor, rows: tuple[int, ...] | None
) -> None:
    paths = draw_random_paths([48] * 3, num_images=5, top_k=2, generator=torch.Generator().manual_seed(0))
    with scale_paths(adapted, paths, factor=0.0, token_indices=rows), torch.no_grad():
        together = adapted.model(images)
    for index in range(5):
        h = adapted.stem(images[index : index + 1])
        for layer in range(3):
            m, u = adapted.open_block(layer, h)
            u = u.detach().clone()
            for row, column in product(range(u.shape[1]) if rows is None else rows, paths[index, layer].tolist()):
                u[0, row, column] = 0
            h = adapted.close_block(layer, m, u)
        torch.testing.assert_close(together[index], adapted.head(h)[0].detach())
    with torch.no_grad():
        assert not torch.allclose(adapted.model(images), together)  # and nothing stays scaled


def test_effects_are_differences_of_probabilities_and_of_right_answers(adapted: AdaptedModel, images: Tensor) -> None:
    targets = torch.tensor([0, 1, 2, 0, 1])
    every = torch.arange(48).expand(5, 3, 48)
    removed, same = measure_effects(adapted, images, targets, every, factors=(0.0, 1.0), objective=ClassProbability())
    for site in adapted.sites:  # all neurons gone: only the biases of the projections are left
        site.down.register_forward_pre_hook(lambda _, args: (torch.zeros_like(args[0]),))
    with torch.no_grad():
        without = adapted.model(images).softmax(-1)
    for site in adapted.sites:
        site.down._forward_pre_hooks.clear()
    with torch.no_grad():
        clean = adapted.model(images).softmax(-1)
    pick = torch.arange(5), targets
    torch.testing.assert_close(removed.probability, without[pick] - clean[pick])
    right = (without.argmax(-1) == targets).double() - (clean.argmax(-1) == targets).double()
    torch.testing.assert_close(removed.correct, right)
    assert same.probability.abs().max() < 1e-12
    assert same.correct.abs().max() == 0


def test_shared_neurons_are_those_of_pairs_of_different_images() -> None:
    """Against every pair of images, one by one."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    paths = draw_random_paths([4, 4], num_images=6, top_k=2, generator=generator)
    counts = [torch.zeros(4, 4) for _ in range(2)]
    for image, label in enumerate(labels.tolist()):
        for layer in range(2):
            counts[layer][label, paths[image, layer]] += 1
    shared = measure_overlap(counts, torch.bincount(labels, minlength=4), top_k=2)
    for one, other in product(range(4), range(4)):
        common = [
            len(set(paths[a, layer].tolist()) & set(paths[b, layer].tolist())) / 2
            for a, b, layer in product(range(6), range(6), range(2))
            if a != b and (labels[a], labels[b]) == (one, other)
        ]
        if common:
            assert shared[one, other] == pytest.approx(sum(common) / len(common))
        else:
            assert shared[one, other].isnan()  # class 2 has one image, class 3 none


def test_classes_that_share_are_neighbours() -> None:
    shared = torch.full((5, 5), 0.1).double()
    for one, other in ((0, 3), (1, 4)):
        shared[one, other] = shared[other, one] = 0.8
    shared[2] = shared[:, 2] = torch.nan  # no image
    order = order_classes(shared)
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert order[-1] == 2
    assert abs(order.index(0) - order.index(3)) == abs(order.index(1) - order.index(4)) == 1


def test_the_most_used_neurons_leave_out_what_is_on_no_path() -> None:
    counts = [torch.tensor([[0, 2, 1, 0], [0, 0, 1, 3]]), torch.tensor([[0, 0, 0, 1.0], [0, 0, 0, 0]])]
    assert [columns.tolist() for columns in find_most_used(counts, number=3)] == [[3, 1, 2], [3]]


@pytest.mark.parametrize("rows", [None, (0,)])
def test_the_most_exciting_images_are_those_of_the_highest_activation(
    adapted: AdaptedModel, rows: tuple[int, ...] | None
) -> None:
    images = torch.randn(11, 3, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    labels = torch.zeros(11, dtype=torch.int64)
    columns = [torch.tensor([5, 7]), torch.tensor([0]), torch.zeros(0, dtype=torch.int64)]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((images[start : start + 4], labels[start : start + 4]) for start in range(0, 11, 4))

    found = find_top_images(adapted, batches(), columns, number=3, token_indices=rows)
    with torch.no_grad():
        h = adapted.stem(images)
        for layer in range(3):
            m, u = adapted.open_block(layer, h)
            seen = u if rows is None else u[:, list(rows)]
            for place, column in enumerate(columns[layer].tolist()):
                best = seen[:, :, column].amax(1).topk(3)
                assert found[layer].items[place].tolist() == best.indices.tolist()
                torch.testing.assert_close(found[layer].activations[place], best.values)
            h = adapted.close_block(layer, m, u)
    assert found[2].items.shape == (0, 3)
