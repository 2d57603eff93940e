"""Latency and memory of dense and pruned models: by batch size, eager, compiled and in ONNX Runtime."""

from __future__ import annotations

import copy
import logging
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pathprune.artifacts import ArtifactKind, json_codec
from pathprune.bench.backends import BACKENDS, BackendError, build_runner, missing_packages
from pathprune.bench.groups import Group
from pathprune.evaluation import count_macs, count_params
from pathprune.evaluation.latency import LatencyResult, device_name, speedup, time_in_turns
from pathprune.evaluation.memory import peak_memory
from pathprune.models.adapt import adapt
from pathprune.report.rows import BenchedModel, BenchRow, BenchTiming
from pathprune.runs import RunFolder

log = logging.getLogger(__name__)

BENCH: ArtifactKind[dict[str, BenchTiming]] = ArtifactKind(
    "bench/{}.json",
    inputs=("models", "architecture", "backend", "images", "settings", "threads", "device", "machine", "torch"),
    codec=json_codec(
        lambda timings: {name: timing.model_dump(mode="json") for name, timing in timings.items()},
        lambda content: {name: BenchTiming.model_validate(timing) for name, timing in content.items()},
    ),
)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class BenchConfig(BaseModel):
    """Settings of a measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_sizes: tuple[int, ...] = Field((1, 16, 64), min_length=1)
    backends: tuple[Literal["eager", "compiled", "onnxruntime"], ...] | None = None  # None: all that run here
    repeats: int = Field(20, ge=1)  # timed passes of each model
    warmup: int = Field(3, ge=1)
    threads: int | None = Field(None, ge=1)  # of the CPU; None: torch's own number
    device: str | None = None  # None: CUDA, MPS or the CPU, in this order
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


def bench(groups: Sequence[Group], config: BenchConfig, *, folder: Path) -> list[BenchRow]:
    """Measure every model of every group and return one row per model, backend and batch size.

    The models of a group take turns. Measurements that `folder` holds for the same models, settings and machine are not
    repeated. A backend that cannot run is left out with a warning, or refused if `config` names it.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "keys.json").exists():
        raise ValueError(f"{folder} is not empty and is no run folder; choose another with --output")
    run_folder = RunFolder(folder)
    device = _choose_device(config.device)
    rows: list[BenchRow] = []
    with _threads(config.threads):
        for group in groups:
            models = _describe_models(group, device)
            for backend in _backends(config):
                for batch_size in config.batch_sizes:
                    timings = _obtain_timings(
                        group, config, run_folder, backend=backend, batch_size=batch_size, device=device
                    )
                    rows += [BenchRow(**dict(models[name]), **dict(timing)) for name, timing in timings.items()]
    run_folder.write_json("bench.json", [row.to_json() for row in rows])
    return rows


def _describe_models(group: Group, device: torch.device) -> dict[str, BenchedModel]:
    """Return the part of a row that does not depend on backend and batch size, by model name."""
    models = {}
    dense = count_macs(group.dense, group.input_size[1:])
    for name, model in group.models.items():
        macs = count_macs(model, group.input_size[1:])
        models[name] = BenchedModel(
            group=group.name,
            model=name,
            widths=[site.width for site in adapt(model).sites],
            num_params=count_params(model),
            macs=macs,
            mac_saving=dense / macs,
            device=device_name(device),
        )
    return models


def _obtain_timings(
    group: Group, config: BenchConfig, folder: RunFolder, *, backend: str, batch_size: int, device: torch.device
) -> dict[str, BenchTiming]:
    """Load or measure the timing of each model; return none if the backend cannot run and was not asked for by name."""
    images = torch.randn(batch_size, *group.input_size, generator=torch.Generator().manual_seed(0))
    inputs = {
        "models": {name: [site.width for site in adapt(model).sites] for name, model in group.models.items()},
        "architecture": str(group.dense),
        "backend": backend,
        "images": list(images.shape),
        "settings": config.model_dump(include={"repeats", "warmup", "dtype"}),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
        "machine": [platform.node(), platform.machine()],
        "torch": torch.__version__,
    }
    name = f"{backend}-{batch_size}-{BENCH.of('', **inputs).key[:8]}"  # one file per group and settings

    def measure() -> dict[str, BenchTiming]:
        log.info("measuring %s: %s, batches of %d", group.name, backend, batch_size)
        return _measure(group, images.to(device, _DTYPES[config.dtype]), config, backend=backend)

    try:
        return folder.obtain(BENCH.of(name, **inputs), measure)
    except BackendError as error:
        if config.backends is not None:
            raise
        log.warning("%s, %s, batches of %d: %s", group.name, backend, batch_size, error)
        return {}


def _measure(group: Group, images: Tensor, config: BenchConfig, *, backend: str) -> dict[str, BenchTiming]:
    runs: dict[str, Callable[[], object]] = {
        name: build_runner(model, images, backend=backend) for name, model in group.models.items()
    }
    try:
        times = time_in_turns(runs, repeats=config.repeats, warmup=config.warmup, device=images.device)
    finally:
        torch.compiler.reset()
    results = {
        name: LatencyResult(of_model, len(images), device_name(images.device), torch.get_num_threads())
        for name, of_model in times.items()
    }
    timings = {}
    for name, result in results.items():
        faster = speedup(results["dense"], result)
        timings[name] = BenchTiming(
            backend=backend,
            batch_size=len(images),
            dtype=config.dtype,
            threads=result.threads,
            latency_ms=result.median_ms,
            latency_spread_ms=(result.low_ms, result.high_ms),
            images_per_second=result.throughput,
            speedup=faster.median,
            speedup_spread=(faster.low, faster.high),
            peak_bytes=_peak(group.models[name], images) if backend == "eager" else None,
        )
    return timings


def _peak(model: nn.Module, images: Tensor) -> int:
    return peak_memory(copy.deepcopy(model).to(images.device, images.dtype), images)


def _backends(config: BenchConfig) -> list[str]:
    """Return the configured backends, or every backend whose packages are installed."""
    if config.backends is not None:
        return list(config.backends)
    for backend in BACKENDS:
        if missing := missing_packages(backend):
            log.warning("%s is left out: %s not installed", backend, ", ".join(missing))
    return [backend for backend in BACKENDS if not missing_packages(backend)]


def _choose_device(name: str | None) -> torch.device:
    if name is not None:
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from error
        return torch.device(name)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Let torch use `number` CPU threads while open; None leaves its own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
