"""Latency and memory of dense against pruned models: by batch size, eagerly, compiled and in ONNX Runtime."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pathprune.bench.backends import BACKENDS, BackendError, make_run, missing_packages
from pathprune.evaluation import count_macs, count_params
from pathprune.evaluation.latency import LatencyResult, device_name, speedup, time_in_turns
from pathprune.evaluation.memory import peak_memory
from pathprune.keys import key_of
from pathprune.models.adapt import adapt
from pathprune.models.checkpoint import load_pruned
from pathprune.models.pruned_config import is_pruned_folder, read_pruned_config
from pathprune.pruning import apply_plan
from pathprune.recipe import load_recipe
from pathprune.report.rows import BenchedModel, BenchRow, BenchTiming
from pathprune.runs import RunFolder
from pathprune.stages.experiment import Experiment
from pathprune.stages.planning import Planner
from pathprune.stages.variants import label, variants

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class BenchConfig(BaseModel):
    """What is measured, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_sizes: tuple[int, ...] = Field((1, 16, 64), min_length=1)
    backends: tuple[Literal["eager", "compiled", "onnxruntime"], ...] | None = None  # None: all that run here
    repeats: int = Field(20, ge=1)  # timed passes of each model
    warmup: int = Field(3, ge=1)
    threads: int | None = Field(None, ge=1)  # of the CPU; None: torch's own number
    device: str | None = None  # None: CUDA, MPS or the CPU, in this order
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


@dataclass(frozen=True)
class Group:
    """A dense model and narrower ones of the same architecture, by name, on the CPU."""

    name: str
    dense: nn.Module
    pruned: Mapping[str, nn.Module]
    input_size: tuple[int, int, int]

    @property
    def models(self) -> dict[str, nn.Module]:
        return {"dense": self.dense, **self.pruned}


def bench_groups(
    targets: Sequence[str], overrides: Sequence[str] = (), *, overwrite: bool = False
) -> tuple[list[Group], Path]:
    """The models that `targets` name, and the folder for what is measured.

    A target is a recipe, a run folder (its recipe counts), or a checkpoint that pathprune wrote. Variants of one recipe
    that have the same widths are measured once. Raises `ValueError` for a target that is none of these.
    """
    groups: dict[str, Group] = {}
    folder = None
    for target in targets:
        path = Path(target)
        if is_pruned_folder(path):
            _add_checkpoint(groups, path)
            continue
        if path.is_dir() and (path / "recipe.yaml").exists():
            target = str(path / "recipe.yaml")
            overrides = [*overrides, f"output={path}"]
        elif path.is_dir():
            raise ValueError(f"{path} is no checkpoint that pathprune wrote, and no run folder")
        experiment = Experiment(load_recipe(target, overrides), overwrite=overwrite)
        groups[target] = _of_recipe(experiment)
        folder = folder or experiment.folder.path
    return list(groups.values()), folder or Path("runs") / "bench"


def bench(groups: Sequence[Group], config: BenchConfig, *, folder: Path) -> list[BenchRow]:
    """Measure every model of every group, those of a group in turns; returns a row per model, backend and batch size.

    What `folder` holds from an earlier call with the same models, settings and machine is not measured again. A backend
    that was not asked for by name and cannot run is left out, with a warning.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "keys.json").exists():
        raise ValueError(f"{folder} is not empty and is no run folder; choose another with --output")
    run_folder = RunFolder(folder)
    device = _device(config.device)
    rows: list[BenchRow] = []
    with _threads(config.threads):
        for group in groups:
            models = _describe_models(group, device)
            for backend in _backends(config):
                for batch_size in config.batch_sizes:
                    timings = _measured(
                        group, config, run_folder, backend=backend, batch_size=batch_size, device=device
                    )
                    rows += [BenchRow(**dict(models[name]), **dict(timing)) for name, timing in timings.items()]
    run_folder.write_json("bench.json", [row.to_json() for row in rows])
    return rows


def _add_checkpoint(groups: dict[str, Group], path: Path) -> None:
    """Add a checkpoint, in place, to the group of its architecture."""
    config = read_pruned_config(path)
    architecture = config.base
    key = key_of(architecture=[architecture.name, dict(architecture.args)], size=config.data_config["input_size"])
    group = groups.get(key)
    if group is None:
        dense = architecture.build(data_config=config.data_config, class_names=config.class_names)
        group = Group(architecture.name, dense, {}, tuple(config.data_config["input_size"]))
    groups[key] = Group(group.name, group.dense, {**group.pruned, str(path): load_pruned(path)}, group.input_size)


def _of_recipe(experiment: Experiment) -> Group:
    planner = Planner(experiment)
    by_widths: dict[tuple[int, ...], tuple[str, nn.Module]] = {}
    for variant in variants(experiment.recipe):
        plan = planner.plan(variant).plan
        widths = tuple(len(kept) for kept in plan.kept.values())
        if widths not in by_widths:
            name = f"{label(variant.criterion)} at {variant.budget}"
            by_widths[widths] = name, apply_plan(experiment.adapted, plan=plan).model.cpu()
    size = tuple(experiment.data_config["input_size"])
    return Group(experiment.recipe.name, experiment.model.cpu(), dict(by_widths.values()), size)


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


def _measured(
    group: Group, config: BenchConfig, folder: RunFolder, *, backend: str, batch_size: int, device: torch.device
) -> dict[str, BenchTiming]:
    """Load or measure the timing of each model; return none if the backend cannot run and was not asked for by name."""
    images = torch.randn(batch_size, *group.input_size, generator=torch.Generator().manual_seed(0))
    key = key_of(
        models={name: [site.width for site in adapt(model).sites] for name, model in group.models.items()},
        architecture=str(group.dense),
        backend=backend,
        images=list(images.shape),
        how=config.model_dump(include={"repeats", "warmup", "dtype"}),
        threads=torch.get_num_threads(),
        device=device_name(device),
        torch=torch.__version__,
    )

    def measure() -> dict[str, dict[str, Any]]:
        log.info("measuring %s: %s, batches of %d", group.name, backend, batch_size)
        timings = _measure(group, images.to(device, _DTYPES[config.dtype]), config, backend=backend)
        return {name: timing.model_dump(mode="json") for name, timing in timings.items()}

    try:
        stored: dict[str, dict[str, Any]] = folder.json_artifact(
            f"bench/{backend}-{batch_size}-{key[:8]}.json", key=key, make=measure
        )
    except BackendError as error:
        if config.backends is not None:
            raise
        log.warning("%s, %s, batches of %d: %s", group.name, backend, batch_size, error)
        return {}
    return {name: BenchTiming.model_validate(timing) for name, timing in stored.items()}


def _measure(group: Group, images: Tensor, config: BenchConfig, *, backend: str) -> dict[str, BenchTiming]:
    runs: dict[str, Callable[[], object]] = {
        name: make_run(model, images, backend=backend) for name, model in group.models.items()
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
    """Those asked for, or those whose packages are there."""
    if config.backends is not None:
        return list(config.backends)
    for backend in BACKENDS:
        if missing := missing_packages(backend):
            log.warning("%s is left out: %s not installed", backend, ", ".join(missing))
    return [backend for backend in BACKENDS if not missing_packages(backend)]


def _device(asked: str | None) -> torch.device:
    if asked is not None:
        try:
            torch.zeros(1, device=asked)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device '{asked}' cannot be used: {str(error).splitlines()[0]}") from error
        return torch.device(asked)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """While open, torch uses so many threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
