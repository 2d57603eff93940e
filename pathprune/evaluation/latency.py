"""Latency of several models side by side, in a way that a busy machine does not bias.

Models take turns (A B C, B C A, …), so that load, heat and clock changes meet all of them alike; medians and quartiles
are reported, and a speed-up is the median of ratios taken round by round.
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

from pathprune.models.adapt import evaluating, model_device


@dataclass(frozen=True)
class LatencyResult:
    """Times of one forward pass over a batch; `low_ms` and `high_ms` are the quartiles."""

    times_ms: tuple[float, ...]  # one a round, the same rounds for all models of one measurement
    batch_size: int
    device: str
    threads: int  # that torch uses on the CPU

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
        """Images per second at the median."""
        return 1000 * self.batch_size / self.median_ms


@dataclass(frozen=True)
class Speedup:
    """How many times faster a model is than another: median and quartiles of the rounds' ratios."""

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
    """Time `model(images)` for each of `models` in eval mode, `repeats` times each, in turns.

    All run on `device`, by default where the first of them is; every model is put back where it was. The batch size is
    `len(images)`.
    """
    if not models:
        raise ValueError("no models to measure; give at least one")
    if repeats < 1 or warmup < 0:
        raise ValueError(f"latency needs repeats of at least 1 and warmup of at least 0, got {repeats} and {warmup}")
    target = torch.device(device) if device is not None else model_device(next(iter(models.values())))
    images = images.to(target)
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(_placed(model, target))
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
    """Milliseconds of every run, `repeats` of each, taking turns (A B C, B C A, …) after `warmup` rounds untimed.

    What `device` was given to do is waited for.
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
    """Dense time / pruned time, paired by round; both must come from one `measure_latency`."""
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
    """What a device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def _placed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Hold `model` on `device`, and put it back on leaving."""
    home = model_device(model)
    model.to(device)
    try:
        yield
    finally:
        model.to(home)
