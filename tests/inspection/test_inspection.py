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
from pathprune.mining import ClassProbability
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


def test_random_paths_have_distinct_neurons_and_follow_the_generator() -> None:
    def draw(seed: int) -> Tensor:
        return draw_random_paths([4, 6], num_images=50, top_k=3, generator=torch.Generator().manual_seed(seed))

    paths = draw(0)
    assert paths.shape == (50, 2, 3)
    assert all(len(set(layer)) == 3 for image in paths.tolist() for layer in image)
    assert [paths[:, layer].max() for layer in (0, 1)] == [3, 5]
    assert torch.equal(paths, draw(0))
    assert not torch.equal(paths, draw(1))


@pytest.mark.parametrize("token_indices", [None, (0,)])
def test_a_path_is_scaled_for_its_own_image_and_tokens_only(
    adapted: AdaptedModel, images: Tensor, token_indices: tuple[int, ...] | None
) -> None:
    paths = draw_random_paths([48] * 3, num_images=5, top_k=2, generator=torch.Generator().manual_seed(0))
    with scale_paths(adapted, paths, factor=0.0, token_indices=token_indices), torch.no_grad():
        removed_BK = adapted.model(images)
    for index in range(5):
        h = adapted.stem(images[index : index + 1])
        for layer in range(3):
            m, u = adapted.open_block(layer, h)
            u = u.detach().clone()
            tokens = range(u.shape[1]) if token_indices is None else token_indices
            for token, column in product(tokens, paths[index, layer].tolist()):
                u[0, token, column] = 0
            h = adapted.close_block(layer, m, u)
        torch.testing.assert_close(removed_BK[index], adapted.head(h)[0].detach())
    with torch.no_grad():
        assert not torch.allclose(adapted.model(images), removed_BK)  # no scaling is left


def test_effects_are_differences_of_probabilities_and_of_correct_predictions(
    adapted: AdaptedModel, images: Tensor
) -> None:
    targets = torch.tensor([0, 1, 2, 0, 1])
    all_neurons = torch.arange(48).expand(5, 3, 48)
    removed, same = measure_effects(
        adapted, images, targets, all_neurons, factors=(0.0, 1.0), objective=ClassProbability()
    )
    for site in adapted.sites:  # without neurons, only the biases of the projections are left
        site.down.register_forward_pre_hook(lambda _, args: (torch.zeros_like(args[0]),))
    with torch.no_grad():
        without = adapted.model(images).softmax(-1)
    for site in adapted.sites:
        site.down._forward_pre_hooks.clear()
    with torch.no_grad():
        clean = adapted.model(images).softmax(-1)
    pick = torch.arange(5), targets
    torch.testing.assert_close(removed.probability, without[pick] - clean[pick])
    correct = (without.argmax(-1) == targets).double() - (clean.argmax(-1) == targets).double()
    torch.testing.assert_close(removed.correct, correct)
    assert same.probability.abs().max() < 1e-12
    assert same.correct.abs().max() == 0


def test_overlap_is_the_mean_over_pairs_of_different_images() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    paths = draw_random_paths([4, 4], num_images=6, top_k=2, generator=generator)
    counts = [torch.zeros(4, 4) for _ in range(2)]
    for image, label in enumerate(labels.tolist()):
        for layer in range(2):
            counts[layer][label, paths[image, layer]] += 1
    overlap = measure_overlap(counts, torch.bincount(labels, minlength=4), top_k=2)
    for one, other in product(range(4), range(4)):
        common = [
            len(set(paths[a, layer].tolist()) & set(paths[b, layer].tolist())) / 2
            for a, b, layer in product(range(6), range(6), range(2))
            if a != b and (labels[a], labels[b]) == (one, other)
        ]
        if common:
            assert overlap[one, other] == pytest.approx(sum(common) / len(common))
        else:
            assert overlap[one, other].isnan()  # class 2 has one image, class 3 has none


def test_classes_of_large_overlap_are_neighbours() -> None:
    overlap = torch.full((5, 5), 0.1).double()
    for one, other in ((0, 3), (1, 4)):
        overlap[one, other] = overlap[other, one] = 0.8
    overlap[2] = overlap[:, 2] = torch.nan  # no image
    order = order_classes(overlap)
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert order[-1] == 2
    assert abs(order.index(0) - order.index(3)) == abs(order.index(1) - order.index(4)) == 1


def test_neurons_on_no_path_are_not_among_the_most_used() -> None:
    counts = [torch.tensor([[0, 2, 1, 0], [0, 0, 1, 3]]), torch.tensor([[0, 0, 0, 1.0], [0, 0, 0, 0]])]
    assert [columns.tolist() for columns in find_most_used(counts, number=3)] == [[3, 1, 2], [3]]


@pytest.mark.parametrize("token_indices", [None, (0,)])
def test_the_top_images_have_the_highest_activation(
    adapted: AdaptedModel, token_indices: tuple[int, ...] | None
) -> None:
    images = torch.randn(11, 3, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    labels = torch.zeros(11, dtype=torch.int64)
    columns = [torch.tensor([5, 7]), torch.tensor([0]), torch.zeros(0, dtype=torch.int64)]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((images[start : start + 4], labels[start : start + 4]) for start in range(0, 11, 4))

    top_images = find_top_images(adapted, batches(), columns, number=3, token_indices=token_indices)
    with torch.no_grad():
        h = adapted.stem(images)
        for layer in range(3):
            m, u = adapted.open_block(layer, h)
            u_tokens = u if token_indices is None else u[:, list(token_indices)]
            for place, column in enumerate(columns[layer].tolist()):
                best = u_tokens[:, :, column].amax(1).topk(3)
                assert top_images[layer].items[place].tolist() == best.indices.tolist()
                torch.testing.assert_close(top_images[layer].activations[place], best.values)
            h = adapted.close_block(layer, m, u)
    assert top_images[2].items.shape == (0, 3)
