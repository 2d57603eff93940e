"""The accuracy of paths: counted and correlated by hand, and the fewest nodes that reach a goal."""

import json

import pytest
import timm
import torch
from torch import nn

from pathprune.mining import MinedPaths, PathAccuracy, choose_nodes, compare_paths, locate_paths
from pathprune.models.adapt import adapt


def mined(paths, *scores) -> MinedPaths:
    per_layer = [torch.tensor(layer) for layer in scores]
    none = torch.zeros(len(paths))
    return MinedPaths(torch.tensor(paths), per_layer, per_layer, per_layer, none, none.long(), none.long())


def test_agreement_counts_neurons_of_the_same_layer_whatever_their_rank():
    ours = mined([[[0, 1], [2, 0]], [[1, 2], [0, 1]]], [[1.0, 2, 4]] * 2, [[1.0, 2, 4]] * 2)
    theirs = mined([[[1, 0], [2, 1]], [[0, 1], [2, 1]]], [[1.0, 2, 4]] * 2, [[1.0, 2, 4]] * 2)
    accuracy = compare_paths([ours], [theirs], nodes=4, goal=0.5)
    assert (accuracy.num_neurons, accuracy.num_agreeing, accuracy.num_images) == (8, 2 + 1 + 1 + 1, 2)
    assert accuracy.agreement == 5 / 8


def test_correlations_are_means_over_images_and_layers_by_hand():
    # layer 0: (1, 2, 4) against (2, 4, 8) and (4, 2, 1); layer 1, of another width: equal, and a dead layer
    ours = mined([[[0], [0]], [[0], [0]]], [[1.0, 2, 4], [1, 2, 4]], [[1.0, 5], [3, 3]])
    theirs = mined([[[0], [0]], [[0], [0]]], [[2.0, 4, 8], [4, 2, 1]], [[1.0, 5], [3, 4]])
    accuracy = compare_paths([ours], [theirs], nodes=4, goal=0.5)
    reversed_pearson = torch.corrcoef(torch.tensor([[1.0, 2, 4], [4, 2, 1]]))[0, 1].item()
    assert accuracy.correlation == pytest.approx((1 + reversed_pearson + 1) / 3)
    assert accuracy.rank_correlation == pytest.approx((1 - 1 + 1) / 3)


@pytest.mark.parametrize(("num_agreeing", "reached"), [(95, True), (94, False), (96, True)])
def test_a_goal_is_missed_by_more_than_the_one_neuron_that_a_sample_resolves(num_agreeing, reached):
    assert PathAccuracy(4, 0.995, 8, 96, num_agreeing, 1.0, 1.0).meets_goal == reached


def test_an_accuracy_reads_back():
    accuracy = PathAccuracy(4, 0.995, 8, 96, 94, 0.99, 0.98)
    content = json.loads(json.dumps(accuracy.to_dict()))
    assert (content["reached"], content["agreement"]) == (False, 94 / 96)
    assert PathAccuracy.from_dict(content) == accuracy


def curved_model() -> nn.Module:
    """One whose probabilities change fast along a path, so that few nodes do not do."""
    torch.manual_seed(0)
    args = {"img_size": 16, "patch_size": 8, "depth": 3, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", **args)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def test_the_choose_nodes_are_those_below_which_the_goal_is_missed():
    adapted, images = adapt(curved_model()), torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(3))

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


def test_where_no_number_of_nodes_reaches_the_goal_the_best_is_taken():
    converged = [mined([[[0], [0]]], [[1.0, 2]], [[1.0, 2]])]
    right_in_one_layer = [mined([[[0], [1]]], [[1.0, 2]], [[1.0, 2]])]
    right_in_none = [mined([[[1], [1]]], [[1.0, 2]], [[1.0, 2]])]
    chosen = choose_nodes(lambda nodes: right_in_one_layer if nodes in (3, 8) else right_in_none, converged, goal=1.0)
    assert (chosen.nodes, chosen.num_agreeing, chosen.meets_goal) == (3, 1, False)
