"""Tests of streamed moments against torch.var over all rows at once."""

import pytest
import timm
import torch
from torch import Tensor

from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel
from pathprune.scoring import ActivationStatistics, Moments, ScoringContext, collect_statistics, score

TINY = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 5}


def make_model() -> AdaptedModel:
    torch.manual_seed(0)
    return adapt(timm.create_model("vit_tiny_patch16_224", **TINY, proj_drop_rate=0.5).double().train())


def split_batches(images: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split(size)]


def run_hidden_activations(adapted: AdaptedModel, images: Tensor) -> list[Tensor]:
    """Return the hidden activations `[N, W]` of every block, without hooks."""
    adapted.model.eval()
    rows, h = [], adapted.stem(images)
    for index in range(len(adapted.sites)):
        m, u = adapted.open_block(index, h)
        rows.append(u.flatten(0, 1).detach())
        h = adapted.close_block(index, m, u)
    return rows


@pytest.mark.parametrize("covariance", [False, True])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_streamed_moments_equal_moments_of_all_rows_at_once(size, covariance):
    adapted = make_model()
    images = torch.randn(7, 3, 16, 16, dtype=torch.float64)
    statistics = collect_statistics(adapted, split_batches(images, size), covariance=covariance)
    for site, rows in zip(adapted.sites, run_hidden_activations(adapted, images), strict=True):
        moments = statistics.sites[site.name]
        assert moments.num_rows == 7 * 5
        torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(moments.variance, rows.var(0, correction=0), rtol=1e-12, atol=1e-14)
        if covariance:
            expected = torch.cov(rows.T, correction=0)
            torch.testing.assert_close(moments.covariance, expected, rtol=1e-12, atol=1e-14)
        else:
            assert moments.covariance is None


def test_a_weighted_row_counts_like_repeated_rows():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 5, dtype=torch.float64, generator=generator)
    times = torch.randint(0, 4, (40,), generator=generator)
    repeated = rows.repeat_interleave(times, dim=0)
    weighted = Moments.from_rows(rows, covariance=True, weights=times * 40 / times.sum())
    expected = Moments.from_rows(repeated, covariance=True)
    torch.testing.assert_close(weighted.mean, expected.mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(weighted.variance, expected.variance, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(weighted.covariance, expected.covariance, rtol=1e-6, atol=1e-8)


def test_products_of_float32_rows_are_accurate_to_the_rounding_of_the_rows():
    rows = 100 + torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    moments = Moments.from_rows(rows, covariance=True)
    expected = torch.cov(rows.double().T, correction=0)
    torch.testing.assert_close(moments.covariance, expected, rtol=0, atol=5e-6)


def test_merging_is_stable_where_sums_of_squares_are_not():
    rows = 1e8 + torch.randn(1000, 3, dtype=torch.float64)
    first, *rest = [Moments.from_rows(part, covariance=True) for part in rows.split(10)]
    for moments in rest:
        first = first.merge(moments)
    torch.testing.assert_close(first.variance, rows.var(0, correction=0), rtol=1e-6, atol=0)
    torch.testing.assert_close(first.covariance, torch.cov(rows.T, correction=0), rtol=1e-5, atol=1e-7)


def test_merging_with_moments_without_covariance_drops_the_covariance():
    rows = torch.randn(10, 3)
    assert Moments.from_rows(rows, covariance=True).merge(Moments.from_rows(rows)).covariance is None
    assert Moments.from_rows(rows).merge(Moments.from_rows(rows, covariance=True)).covariance is None


def test_several_chunks_give_the_same_moments(monkeypatch):
    adapted = make_model()
    images = torch.randn(7, 3, 16, 16, dtype=torch.float64)
    whole = collect_statistics(adapted, split_batches(images, 7), covariance=True)
    monkeypatch.setattr("pathprune.scoring.moments._CHUNK_ROWS", 4)
    for site in adapted.sites:
        chunked = collect_statistics(adapted, split_batches(images, 7), covariance=True).sites[site.name]
        assert chunked.num_rows == 35
        torch.testing.assert_close(chunked.variance, whole.sites[site.name].variance, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(chunked.covariance, whole.sites[site.name].covariance, rtol=1e-12, atol=1e-14)


def test_the_model_stays_unchanged():
    adapted = make_model()
    adapted.model.train()
    collect_statistics(adapted, split_batches(torch.randn(2, 3, 16, 16), 2))  # float32 images for a float64 model
    assert all(module.training for module in adapted.model.modules())
    assert not any(module._forward_pre_hooks for module in adapted.model.modules())
    assert all(parameter.requires_grad for parameter in adapted.model.parameters())


def test_an_empty_loader_is_refused():
    with pytest.raises(ValueError, match="need at least one image"):
        collect_statistics(make_model(), [])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_block_with_infinite_activations_is_named(bad):
    adapted = make_model()
    adapted.model.blocks[1].mlp.fc1.bias.data[3] = bad
    with pytest.raises(ValueError, match=r"block 1: the MLP's hidden activations \(blocks\.1\.mlp\.fc2\) are NaN or"):
        collect_statistics(adapted, split_batches(torch.randn(2, 3, 16, 16), 2))
    assert not any(module._forward_pre_hooks for module in adapted.model.modules())


@pytest.mark.parametrize("covariance", [False, True])
def test_statistics_survive_a_round_trip_through_a_file(tmp_path, covariance):
    adapted = make_model()
    statistics = collect_statistics(adapted, split_batches(torch.randn(3, 3, 16, 16), 2), covariance=covariance)
    statistics.save(tmp_path / "statistics.safetensors")
    restored = ActivationStatistics.load(tmp_path / "statistics.safetensors")
    assert list(restored.sites) == list(statistics.sites)
    for name, moments in statistics.sites.items():
        assert restored.sites[name].num_rows == moments.num_rows == 15
        assert torch.equal(restored.sites[name].mean, moments.mean)
        assert torch.equal(restored.sites[name].variance, moments.variance)
        if covariance:
            assert torch.equal(restored.sites[name].covariance, moments.covariance)
        else:
            assert restored.sites[name].covariance is None


def test_missing_covariances_are_refused():
    adapted = make_model()
    statistics = collect_statistics(adapted, split_batches(torch.randn(3, 3, 16, 16), 2))
    statistics.check(adapted.sites)
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.fc2 have no covariance; collect them with covariance=True"):
        statistics.check(adapted.sites, covariance=True)


def test_a_file_without_statistics_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no activation statistics of schema version 1"):
        ActivationStatistics.load(tmp_path / "other.safetensors")


def test_variance_criteria_equal_torch_var():
    adapted = make_model()
    images = torch.randn(7, 3, 16, 16, dtype=torch.float64)
    context = ScoringContext(adapted, statistics=collect_statistics(adapted, split_batches(images, 3)))
    plain, weighted = score(context, criterion="variance"), score(context, criterion="variance-weighted")
    for site, rows in zip(adapted.sites, run_hidden_activations(adapted, images), strict=True):
        variance = torch.var(rows, dim=0, correction=0)
        torch.testing.assert_close(plain[site.name], variance, rtol=1e-12, atol=1e-14)
        columns = torch.stack([site.down.weight[:, j].detach().norm() ** 2 for j in range(site.width)])
        torch.testing.assert_close(weighted[site.name], variance * columns, rtol=1e-12, atol=1e-16)
