"""Export of a model with a check of every file: its outputs against the model, its size and speed against dense."""

# N images [N, C, H, W], B of them in a batch, K logits

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pathprune.evaluation.latency import time_in_turns
from pathprune.export.formats import ExportError, Format, Runner
from pathprune.files import write_atomically, write_text
from pathprune.models.adapt import evaluating

REPORT_FILE = "export.json"


@dataclass(frozen=True)
class ExportedFile:
    """An exported file with its agreement, size and speed.

    Latencies are medians over batches on the CPU. `speedup` is the median of dense latency / latency, and
    `speedup_spread` its quartiles, over rounds in which the files take turns. Fields of the dense model, exported in
    the same format, are None if the model is dense itself.
    """

    file: str
    runtime: str
    precision: str
    num_bytes: int
    agreement: float  # fraction of the images for which file and model predict the same class
    max_logit_difference: float
    latency_ms: float
    dense_num_bytes: int | None = None
    dense_latency_ms: float | None = None
    speedup: float | None = None
    speedup_spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Agreement:
    fraction: float
    max_logit_difference: float


def export_model(
    model: nn.Module,
    folder: str | Path,
    *,
    formats: Sequence[Format],
    images: Tensor,
    dense: nn.Module | None = None,
    dynamic_batch: bool = False,
    batch_size: int = 1,
    repeats: int = 20,
    about: Mapping[str, Any] | None = None,
) -> list[ExportedFile]:
    """Write `model` (float32, on the CPU) in each of `formats` to `folder`, with a report; return its rows.

    - images: normalised images `[N, C, H, W]` on which the outputs of files and model are compared.
    - dense: a model, possibly with random weights, that is exported too, to compare size and speed.
    - dynamic_batch: the files accept any batch size; else they accept `batch_size` only.
    - batch_size, repeats: of the timings.
    - about: any JSON data, stored in the report.

    Only an earlier export in `folder` is replaced. Raises `ExportError`, without writing anything, if a file gives
    logits that are not finite or a float32 file predicts another class than the model for any image.
    """
    folder = Path(folder)
    check_replaceable(folder)
    if not 1 <= batch_size <= len(images):
        raise ExportError(f"a batch size of {batch_size} needs at least as many images, got {len(images)}")
    # torch.export specialises a batch of one: give it two images if the batch is dynamic
    example = images[:1].repeat(2, 1, 1, 1) if dynamic_batch and batch_size == 1 else images[:batch_size]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder) as part, TemporaryDirectory() as scratch:
        part.mkdir()
        runners = _write_files(model, part, formats, example, dynamic_batch)
        dense_files = {} if dense is None else _write_files(dense, Path(scratch), formats, example, dynamic_batch)
        agreements = {each.file: _compare(model, each, runners[each.file], images, batch_size) for each in formats}
        if dynamic_batch:
            for run in runners.values():
                run(images[:1])  # a dynamic batch may hold one image
        runners |= {f"dense {file}": run for file, run in dense_files.items()}
        runs = {name: partial(run, images[:batch_size]) for name, run in runners.items()}
        times = time_in_turns(runs, repeats=repeats, warmup=3, device=torch.device("cpu"))
        files = [_describe_file(each, agreements[each.file], times, part, Path(scratch)) for each in formats]
        report = {"about": dict(about or {}), "num_images": len(images), "latency_batch_size": batch_size}
        report |= {"threads": torch.get_num_threads(), "files": [asdict(file) for file in files]}
        write_text(part / REPORT_FILE, json.dumps(report, indent=2) + "\n")
    return files


def check_replaceable(folder: Path) -> None:
    """Raise `ExportError` if `folder` is a file, or a folder with anything but an earlier export."""
    if folder.exists() and not (folder / REPORT_FILE).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise ExportError(f"{folder} exists and is no earlier export; choose a new or empty folder")


def _write_files(
    model: nn.Module, folder: Path, formats: Sequence[Format], example: Tensor, dynamic_batch: bool
) -> dict[str, Runner]:
    """Write the model in each format and return a runner for each file."""
    runners = {}
    with evaluating(model):
        for each in formats:
            each.write(model, folder / each.file, example=example, dynamic_batch=dynamic_batch)
            runners[each.file] = each.open(folder / each.file)
    return runners


def _compare(model: nn.Module, file_format: Format, run: Runner, images: Tensor, batch_size: int) -> _Agreement:
    """Compare the logits of a file with those of the model, in batches of the size that the file accepts."""
    name, num_agreeing, difference = file_format.file, 0, 0.0
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            expected = model(batch)
            padding = images[: batch_size - len(batch)]  # a file for a fixed batch size takes full batches only
            logits = run(torch.cat([batch, padding]))[: len(batch)]
            if not logits.isfinite().all():
                raise ExportError(
                    f"{name} gives logits that are not finite in the batch from image {start}; export without "
                    f"{file_format.precision}"
                )
            num_agreeing += int((logits.argmax(1) == expected.argmax(1)).sum())
            difference = max(difference, float((logits - expected).abs().max()))
    if file_format.precision == "float32" and num_agreeing < len(images):
        raise ExportError(
            f"{name} predicts another class than the model for {len(images) - num_agreeing} of {len(images)} images "
            f"(logits differ by up to {difference:.2g}): the exported graph does not compute the model"
        )
    return _Agreement(num_agreeing / len(images), difference)


def _describe_file(
    file_format: Format, agreement: _Agreement, times: Mapping[str, Sequence[float]], folder: Path, dense_folder: Path
) -> ExportedFile:
    """Return the report's row for a file, from times in ms by file and by `dense FILE`."""
    name = file_format.file
    described = ExportedFile(
        file=name,
        runtime=file_format.runtime,
        precision=file_format.precision,
        num_bytes=(folder / name).stat().st_size,
        agreement=agreement.fraction,
        max_logit_difference=agreement.max_logit_difference,
        latency_ms=float(np.median(times[name])),
    )
    dense_times = times.get(f"dense {name}")
    if dense_times is None:
        return described
    low, median, high = np.percentile(np.asarray(dense_times) / np.asarray(times[name]), [25, 50, 75])
    return replace(
        described,
        dense_num_bytes=(dense_folder / name).stat().st_size,
        dense_latency_ms=float(np.median(dense_times)),
        speedup=float(median),
        speedup_spread=(float(low), float(high)),
    )
