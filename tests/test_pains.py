"""Common problems of pruning tools, each as a test of the public API.

Three further problems are tested elsewhere: uncounted attention products in `evaluation/test_cost.py`, ONNX parity and
file sizes in `export/test_export.py`, budgets that are not met in `pruning/test_plan.py`.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import pytest
import timm
import torch
from torch import Tensor, nn

import pathprune
from pathprune.scoring import score

ARGS = {"img_size": 16, "patch_size": 8, "depth": 3, "embed_dim": 64, "num_heads": 4, "num_classes": 5}


def build_vit(**args: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **{**ARGS, **args}).eval()


def random_images(number: int = 4) -> Tensor:
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def prune(model: nn.Module, *, weak_blocks: Sequence[int] = (), **settings: object) -> nn.Module:
    """Return `model` pruned by random scores, which are far lower in `weak_blocks`."""
    adapted = pathprune.adapt(model)
    generator = torch.Generator().manual_seed(2)
    scores = {
        site.name: torch.rand(site.width, generator=generator) * (1e-6 if site.block in weak_blocks else 1)
        for site in adapted.sites
    }
    return pathprune.prune(adapted, plan=pathprune.make_plan(scores, sites=adapted.sites, **settings)).model


def measure_widths(model: nn.Module) -> list[int]:
    return [site.width for site in pathprune.adapt(model).sites]


@pytest.mark.parametrize("multiple", [8, 16, 64])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_widths_are_multiples_of_round_to(multiple: int, scope: str) -> None:
    kept = measure_widths(prune(build_vit(), ratio=0.4, scope=scope, round_to=multiple, min_width=multiple))
    assert [width % multiple for width in kept] == [0, 0, 0]
    assert sum(kept) == pytest.approx(0.6 * 3 * 256, abs=multiple * (3 if scope == "uniform" else 1) / 2)


def test_a_block_with_low_scores_keeps_at_least_one_neuron() -> None:
    model = prune(build_vit(), ratio=0.6, scope="global", weak_blocks=(1,))
    assert min(measure_widths(model)) >= 1
    assert len(model.blocks) == 3
    assert model(random_images()).isfinite().all()
    assert min(measure_widths(prune(build_vit(), ratio=0.6, scope="global", weak_blocks=(1,), min_width=32))) == 32


def test_excluded_blocks_keep_every_neuron() -> None:
    assert measure_widths(prune(build_vit(), ratio=0.5, exclude_blocks=(0, 2))) == [256, 128, 256]


def test_pruning_does_not_change_attention_heads() -> None:
    dense, model = build_vit(), prune(build_vit(), ratio=0.7)
    for before, after in zip(dense.blocks, model.blocks, strict=True):
        for name in ("num_heads", "head_dim", "scale"):
            assert getattr(after.attn, name) == getattr(before.attn, name)
        assert after.attn.qkv.weight.shape == before.attn.qkv.weight.shape
    assert model(random_images()).shape == (4, 5)


class LanguageModelWithEyes(nn.Module):
    """A vision-language model with a vision tower, a projector and a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = build_vit(num_classes=0)
        self.projector = nn.Linear(64, 24)
        self.language = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 7))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.language(self.projector(self.visual(images)))
        return logits


def test_the_vision_tower_of_a_larger_model_can_be_pruned_alone(tmp_path: object) -> None:
    whole = LanguageModelWithEyes().eval()
    others = {name: tensor.clone() for name, tensor in whole.state_dict().items() if not name.startswith("visual.")}
    whole.visual = prune(whole.visual, ratio=0.5)
    assert measure_widths(whole.visual) == [128, 128, 128]
    assert whole(random_images()).shape == (4, 7)
    assert all(torch.equal(whole.state_dict()[name], tensor) for name, tensor in others.items())
    again = pathprune.load_pruned(pathprune.save_pruned(whole.visual, f"{tmp_path}/tower"))
    with torch.inference_mode():
        torch.testing.assert_close(again(random_images()), whole.visual(random_images()))


@pytest.mark.parametrize("criterion", ["variance", "taylor", "hessian"])
def test_scores_depend_on_the_whole_loader_not_on_its_last_batch(criterion: str) -> None:
    adapted = pathprune.adapt(build_vit())
    first, last = (
        (random_images(8)[:4], torch.tensor([0, 1, 2, 3])),
        (3 * random_images(8)[4:], torch.tensor([4, 3, 2, 1])),
    )

    def scores(batches: list[tuple[Tensor, Tensor]]) -> Tensor:
        statistics = pathprune.collect_statistics(adapted, batches)
        context = pathprune.ScoringContext(adapted=adapted, batches=batches, mined={}, statistics=statistics, seed=0)
        return torch.cat(list(score(context, criterion=criterion).values()))

    both = scores([first, last])
    torch.testing.assert_close(scores([last, first]), both, rtol=1e-4, atol=1e-12)
    assert not torch.allclose(scores([last]), both, rtol=1e-2, atol=0)


def test_pruned_models_can_be_pickled_and_are_saved_without_pickle(tmp_path: object) -> None:
    model = prune(build_vit(), ratio=0.5)
    with torch.inference_mode():
        assert torch.equal(pickle.loads(pickle.dumps(model))(random_images()), model(random_images()))
    folder = pathprune.save_pruned(model, f"{tmp_path}/pruned")
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
