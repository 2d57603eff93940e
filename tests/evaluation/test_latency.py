"""Tests of latency with a fake clock that the models advance, so that every time is known."""

import pytest
import torch
from torch import Tensor, nn

from pathprune.evaluation import LatencyResult, latency, measure_latency, speedup


class Clock:
    def __init__(self):
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now


class Slow(nn.Module):
    """A model whose forward passes take the given seconds on `clock`, one after the other."""

    def __init__(self, name: str, clock: Clock, seconds: list[float]):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.name, self.clock, self.seconds = name, clock, list(seconds)

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.clock.calls.append(self.name)
        self.clock.now += self.seconds.pop(0)
        return images


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "perf_counter", clock)
    return clock


IMAGES = torch.zeros(4, 3, 2, 2)


def test_models_take_turns_and_the_first_model_rotates(clock):
    models = {name: Slow(name, clock, [0.001] * 4) for name in "abc"}
    measure_latency(models, IMAGES, repeats=3, warmup=1)
    rounds = ["".join(clock.calls[i : i + 3]) for i in range(0, 12, 3)]
    assert [sorted(turn) for turn in rounds] == [list("abc")] * 4
    assert rounds[1:] == ["abc", "bca", "cab"]


def test_medians_quartiles_and_throughput_exclude_the_warmup(clock):
    model = Slow("a", clock, [9.0, 9.0, 0.010, 0.020, 0.030, 0.040, 0.500])
    result = measure_latency({"a": model}, IMAGES, repeats=5, warmup=2)["a"]
    assert result.times_ms == pytest.approx((10, 20, 30, 40, 500))
    assert (result.low_ms, result.median_ms, result.high_ms) == pytest.approx((20, 30, 40))
    assert result.throughput == pytest.approx(4 / 0.030)
    assert (result.num_runs, result.batch_size, result.device) == (5, 4, "cpu")
    assert result.threads == torch.get_num_threads()


def test_speedup_is_paired_by_round(clock):
    # A load that comes and goes slows both models alike: the times change, the ratio does not.
    load = [1, 10, 1, 5, 1]
    models = {
        "dense": Slow("dense", clock, [0.004 * slower for slower in load]),
        "pruned": Slow("pruned", clock, [0.002 * slower for slower in load]),
    }
    results = measure_latency(models, IMAGES, repeats=5, warmup=0)
    ratio = speedup(results["dense"], results["pruned"])
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((2, 2, 2))


def test_training_mode_is_restored(clock):
    model = Slow("a", clock, [0.1]).train()
    measure_latency({"a": model}, IMAGES, repeats=1, warmup=0)
    assert model.training
    assert model.weight.requires_grad


def test_models_return_to_their_device(clock, monkeypatch):
    model = Slow("a", clock, [0.1])
    moves = []
    monkeypatch.setattr(model, "to", lambda device: moves.append((device.type, list(clock.calls))))
    result = measure_latency({"a": model}, IMAGES, repeats=1, warmup=0, device="meta")["a"]
    assert moves == [("meta", []), ("cpu", ["a"])]
    assert result.device == "meta"


def test_times_are_positive_with_the_real_clock():
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(3)])
    result = measure_latency({"a": model}, torch.zeros(8, 64), repeats=3)["a"]
    assert result.num_runs == 3
    assert all(time > 0 for time in result.times_ms)


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="no models"):
        measure_latency({}, IMAGES)
    with pytest.raises(ValueError, match=r"repeats must be .* got repeats=0 and warmup=5"):
        measure_latency({"a": nn.Linear(2, 2)}, IMAGES, repeats=0)
    few, many = LatencyResult((1.0,), 4, "cpu", 1), LatencyResult((1.0, 2.0), 4, "cpu", 1)
    with pytest.raises(ValueError, match="cannot be paired"):
        speedup(few, many)
