"""Latency of several models, measured in turns so that a busy machine does not favour one of them.

Models take turns (A B C, B C A, …): load, heat and clock changes affect all of them alike. A latency is a median with
quartiles. A speed-up is the median over rounds of the ratio of two latencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from pathprune.models.adapt import evaluating, find_device


@dataclass(frozen=True)
class LatencyResult:
    """Times of a forward pass over one batch; `low_ms` and `high_ms` are the first and third quartiles."""

    times_ms: tuple[float, ...]  # one per round; all models of a measurement share the rounds
    batch_size: int
    device: str
    threads: int  # CPU threads of torch

    @property
    def num_runs(self) -> int:
        return len(self.times_ms)

    @property
    def median_ms(self) -> float:
        return float(np.median(self.times_ms))

    @property
    def low_ms(self) -> float:
        return float(np.percentile(self.times_ms, 25))

    @property
    def high_ms(self) -> float:
        return float(np.percentile(self.times_ms, 75))

    @property
    def throughput(self) -> float:
        """Images per second at the median latency."""
        return 1000 * self.batch_size / self.median_ms


@dataclass(frozen=True)
class Speedup:
    """Ratio of two models' latencies: median and quartiles over rounds; above 1, the second model is faster."""

    median: float
    low: float
    high: float


def measure_latency(
    models: Mapping[str, nn.Module],
    images: Tensor,
    *,
    repeats: int = 30,
    warmup: int = 5,
    device: torch.device | str | None = None,
) -> dict[str, LatencyResult]:
    """Measure the latency of `model(images)` for each of `models` in eval mode, `repeats` times each, in turns.

    All models run on `device`, by default the first model's device, and return to their own device afterwards. The
    batch size is `len(images)`. Raises `ValueError` if there are no models, or if `repeats` or `warmup` is too small.
    """
    if not models:
        raise ValueError("no models to measure; pass at least one")
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats must be at least 1 and warmup at least 0, got repeats={repeats} and warmup={warmup}")
    target = torch.device(device) if device is not None else find_device(next(iter(models.values())))
    images = images.to(target)
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(_move_temporarily(model, target))
            stack.enter_context(evaluating(model))
        stack.enter_context(torch.inference_mode())
        runs = {name: partial(model, images) for name, model in models.items()}
        times = time_in_turns(runs, repeats=repeats, warmup=warmup, device=target)
    return {
        name: LatencyResult(times[name], len(images), device_name(target), torch.get_num_threads()) for name in models
    }


def time_in_turns(
    runs: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int, device: torch.device
) -> dict[str, tuple[float, ...]]:
    """Time every run `repeats` times, in turns (A B C, B C A, …), after `warmup` untimed rounds.

    Returns milliseconds by run, one per round. Each time includes the work that a run queues on `device`.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_index in range(-warmup, repeats):
        start = round_index % len(names)
        for name in names[start:] + names[:start]:
            elapsed = _time_ms(runs[name], device)
            if round_index >= 0:
                times[name].append(elapsed)
    return {name: tuple(times[name]) for name in names}


def speedup(dense: LatencyResult, pruned: LatencyResult) -> Speedup:
    """Return dense latency over pruned latency, paired by round.

    Raises `ValueError` if the two do not come from one call of `measure_latency`.
    """
    if dense.num_runs != pruned.num_runs or dense.batch_size != pruned.batch_size:
        raise ValueError(
            f"latencies of {dense.num_runs} runs at batch {dense.batch_size} and {pruned.num_runs} runs at batch "
            f"{pruned.batch_size} cannot be paired; measure both models in one call"
        )
    ratios = np.asarray(dense.times_ms) / np.asarray(pruned.times_ms)
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return Speedup(float(median), float(low), float(high))


def _time_ms(run: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = perf_counter()
    run()
    _synchronize(device)
    return 1000 * (perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """Return a device's name: the GPU's model, or the device type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def _move_temporarily(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Move `model` to `device`, in place, and back on exit."""
    home = find_device(model)
    model.to(device)
    try:
        yield
    finally:
        model.to(home)
