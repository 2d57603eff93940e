"""Accuracy of paths: agreement and correlation by hand, and the choice of the number of nodes."""

import json

import pytest
import timm
import torch
from torch import nn

from pathprune.mining import MinedPaths, PathAccuracy, choose_nodes, compare_paths, locate_paths
from pathprune.models.adapt import adapt


def build_mined(paths, *scores) -> MinedPaths:
    """Return mined paths with the given scores, `[B, W]` per layer, as own terms and mass too."""
    layers = [torch.tensor(layer) for layer in scores]
    zeros = torch.zeros(len(paths))
    return MinedPaths(torch.tensor(paths), layers, layers, layers, zeros, zeros.long(), zeros.long())


def test_agreement_ignores_the_rank_of_a_neuron_within_its_layer():
    mined = build_mined([[[0, 1], [2, 0]], [[1, 2], [0, 1]]], [[1.0, 2, 4]] * 2, [[1.0, 2, 4]] * 2)
    converged = build_mined([[[1, 0], [2, 1]], [[0, 1], [2, 1]]], [[1.0, 2, 4]] * 2, [[1.0, 2, 4]] * 2)
    accuracy = compare_paths([mined], [converged], nodes=4, goal=0.5)
    assert (accuracy.num_neurons, accuracy.num_agreeing, accuracy.num_images) == (8, 2 + 1 + 1 + 1, 2)
    assert accuracy.agreement == 5 / 8


def test_correlations_are_means_over_images_and_layers():
    # layer 0: (1, 2, 4) against (2, 4, 8) and (4, 2, 1); layer 1, of another width: equal scores, and a constant layer
    mined = build_mined([[[0], [0]], [[0], [0]]], [[1.0, 2, 4], [1, 2, 4]], [[1.0, 5], [3, 3]])
    converged = build_mined([[[0], [0]], [[0], [0]]], [[2.0, 4, 8], [4, 2, 1]], [[1.0, 5], [3, 4]])
    accuracy = compare_paths([mined], [converged], nodes=4, goal=0.5)
    reversed_pearson = torch.corrcoef(torch.tensor([[1.0, 2, 4], [4, 2, 1]]))[0, 1].item()
    assert accuracy.correlation == pytest.approx((1 + reversed_pearson + 1) / 3)
    assert accuracy.rank_correlation == pytest.approx((1 - 1 + 1) / 3)


@pytest.mark.parametrize(("num_agreeing", "meets_goal"), [(95, True), (94, False), (96, True)])
def test_the_goal_tolerates_one_disagreeing_neuron(num_agreeing, meets_goal):
    assert PathAccuracy(4, 0.995, 8, 96, num_agreeing, 1.0, 1.0).meets_goal == meets_goal


def test_an_accuracy_survives_a_round_trip_through_json():
    accuracy = PathAccuracy(4, 0.995, 8, 96, 94, 0.99, 0.98)
    content = json.loads(json.dumps(accuracy.to_dict()))
    assert (content["reached"], content["agreement"]) == (False, 94 / 96)
    assert PathAccuracy.from_dict(content) == accuracy


def build_curved_model() -> nn.Module:
    """Return a model whose probabilities change fast along a path, so that few nodes are not enough."""
    torch.manual_seed(0)
    args = {"img_size": 16, "patch_size": 8, "depth": 3, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", **args)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def test_the_chosen_nodes_are_the_fewest_that_meet_the_goal():
    adapted, images = adapt(build_curved_model()), torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(3))

    def mine(nodes):
        return [locate_paths(adapted, batch, nodes=nodes) for batch in images.split(3)]

    converged = mine(16)
    chosen = choose_nodes(mine, converged, goal=1.0)
    assert chosen.meets_goal
    assert chosen.num_agreeing == chosen.num_neurons == 24
    assert 1 < chosen.nodes <= 16
    for fewer in range(1, chosen.nodes):
        assert compare_paths(mine(fewer), converged, nodes=fewer, goal=1.0).agreement < 1
    assert choose_nodes(mine, converged, goal=0.5).nodes <= chosen.nodes


def test_the_best_number_of_nodes_is_chosen_if_none_meets_the_goal():
    converged = [build_mined([[[0], [0]]], [[1.0, 2]], [[1.0, 2]])]
    agrees_in_one_layer = [build_mined([[[0], [1]]], [[1.0, 2]], [[1.0, 2]])]
    agrees_in_no_layer = [build_mined([[[1], [1]]], [[1.0, 2]], [[1.0, 2]])]

    def mine(nodes):
        return agrees_in_one_layer if nodes in (3, 8) else agrees_in_no_layer

    chosen = choose_nodes(mine, converged, goal=1.0)
    assert (chosen.nodes, chosen.num_agreeing, chosen.meets_goal) == (3, 1, False)
