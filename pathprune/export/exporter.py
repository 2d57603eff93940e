"""Export a model, and compare what the files answer with the model, and their size and speed with the dense model's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
    """What a file is and does; `dense_…` is of the dense model exported alike, None where the model is dense itself.

    Latencies are medians of one batch on the CPU; `speedup` is the median of dense / this, `speedup_spread` the
    quartiles, over rounds in which the models took turns.
    """

    file: str
    runtime: str
    precision: str
    num_bytes: int
    agreement: float  # fraction of the images to which the file gives the class that the model gives
    max_logit_difference: float
    latency_ms: float
    dense_num_bytes: int | None = None
    dense_latency_ms: float | None = None
    speedup: float | None = None
    speedup_spread: tuple[float, float] | None = None


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
    """Write `model` (float32, on the CPU) in these formats to `folder`, with a report; returns what was found.

    `images` `[N, C, H, W]`, normalised, are what the answers of files and model are compared on. Graphs take batches of
    `batch_size` or, with `dynamic_batch`, any; timings are of `batch_size`. `dense` is weighed and timed beside the
    model, and may have random weights. `about` is any JSON, for the report.

    Raises `ExportError` where a float32 file gives an image another class than the model does, or a file gives numbers
    that are not finite; then nothing is written. Only an earlier export in `folder` is replaced.
    """
    folder = Path(folder)
    check_replaceable(folder)
    if not 1 <= batch_size <= len(images):
        raise ExportError(f"batch size {batch_size} needs at least so many images, and there are {len(images)}")
    # torch.export takes a batch of one for a constant
    example = images[:1].repeat(2, 1, 1, 1) if dynamic_batch and batch_size == 1 else images[:batch_size]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder) as part, TemporaryDirectory() as scratch:
        part.mkdir()
        places = {"": (model, part)} | ({} if dense is None else {"dense ": (dense, Path(scratch))})
        runners: dict[str, Runner] = {}
        for prefix, (each, place) in places.items():
            with evaluating(each):
                for kind in formats:
                    kind.write(each, place / kind.file, example=example, dynamic_batch=dynamic_batch)
                    runners[prefix + kind.file] = kind.open(place / kind.file)
        answers = {kind.file: _compared(model, kind, runners[kind.file], images, batch_size) for kind in formats}
        if dynamic_batch:
            for kind in formats:
                runners[kind.file](images[:1])  # a batch of any size: of one too
        calls = {name: partial(run, images[:batch_size]) for name, run in runners.items()}
        times = time_in_turns(calls, repeats=repeats, warmup=3, device=torch.device("cpu"))
        found = [
            ExportedFile(
                kind.file, kind.runtime, kind.precision, **answers[kind.file], **_costs(kind.file, part, scratch, times)
            )
            for kind in formats
        ]
        report = {"about": dict(about or {}), "num_images": len(images), "latency_batch_size": batch_size}
        report |= {"threads": torch.get_num_threads(), "files": [asdict(each) for each in found]}
        write_text(part / REPORT_FILE, json.dumps(report, indent=2) + "\n")
    return found


def check_replaceable(folder: Path) -> None:
    """Raise `ExportError` where there is anything but an earlier export, or nothing, at `folder`."""
    if folder.exists() and not (folder / REPORT_FILE).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise ExportError(f"{folder} is there and is no earlier export; choose a new or empty folder")


def _compared(model: nn.Module, kind: Format, run: Runner, images: Tensor, batch_size: int) -> dict[str, Any]:
    """Agreement with the model, and the largest difference of a logit, in batches that the graph takes."""
    agreeing, difference = 0, 0.0
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            missing = batch_size - len(batch)  # a graph of a fixed size takes whole batches only
            expected = model(batch)
            logits = run(torch.cat([batch, images[:missing]]))[: len(batch)]
            if not logits.isfinite().all():
                raise ExportError(
                    f"{kind.file} gives logits that are not finite for image {start}: leave out {kind.precision}"
                )
            agreeing += int((logits.argmax(1) == expected.argmax(1)).sum())
            difference = max(difference, float((logits - expected).abs().max()))
    if kind.precision == "float32" and agreeing < len(images):
        raise ExportError(
            f"{kind.file} gives {len(images) - agreeing} of {len(images)} images another class than the model does "
            f"(logits differ by up to {difference:.2g}): the graph is not the model's"
        )
    return {"agreement": agreeing / len(images), "max_logit_difference": difference}


def _costs(file: str, folder: Path, scratch: str, times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    own = times[file]
    costs: dict[str, Any] = {
        "num_bytes": (folder / file).stat().st_size,
        "latency_ms": float(np.median(own)),
    }
    if (dense := times.get(f"dense {file}")) is not None:
        low, middle, high = np.percentile(np.asarray(dense) / np.asarray(own), [25, 50, 75])
        costs |= {
            "dense_num_bytes": (Path(scratch) / file).stat().st_size,
            "dense_latency_ms": float(np.median(dense)),
            "speedup": float(middle),
            "speedup_spread": (float(low), float(high)),
        }
    return costs
