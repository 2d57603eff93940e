"""Test of damage against the divergence of whole models with one block exchanged."""

import timm
import torch
from torch import nn

from pathprune.mining import ZeroShot
from pathprune.models.adapt import adapt
from pathprune.pruning import make_plan, measure_damage, prune


def test_damage_is_the_divergence_of_the_model_with_one_block_exchanged():
    torch.manual_seed(0)
    args = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 0}
    tower = timm.create_model("vit_tiny_patch16_224", **args).eval()
    head = ZeroShot(torch.randn(5, 24), 20.0)
    dense = adapt(tower)
    scores = {site.name: torch.rand(site.width) for site in dense.sites}
    pruned = prune(dense, plan=make_plan(scores, sites=dense.sites, ratio=0.5))
    images = torch.randn(6, 3, 16, 16)

    def compute_log_probabilities(*blocks: nn.Module) -> torch.Tensor:
        own, tower.blocks = tower.blocks, nn.Sequential(*blocks)
        with torch.no_grad():
            result = head.class_logits(tower(images)).log_softmax(-1)
        tower.blocks = own
        return result

    (one, two), (narrow_one, narrow_two) = tower.blocks, pruned.model.blocks
    p = compute_log_probabilities(one, two)
    expected = [
        (p.exp() * (p - q)).sum(-1).mean() for q in map(compute_log_probabilities, (narrow_one, one), (two, narrow_two))
    ]
    batches = [(images[:4], torch.zeros(4)), (images[4:], torch.zeros(2))]
    damage = measure_damage(dense, pruned, batches, class_logits=head.class_logits)
    torch.testing.assert_close(torch.tensor(list(damage.values())), torch.stack(expected), rtol=1e-4, atol=1e-7)
    assert min(damage.values()) > 1e-4
