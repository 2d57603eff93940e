"""Evaluate a classifier on labelled images: what it predicts for each image, and the metrics of that.

Runs under Accelerate on any device and number of processes. Everything later (intervals, comparisons, a second run)
works from the per-image outcomes, which are small, so a model is run once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pathprune.evaluation.metrics import (
    Accuracy,
    Agreement,
    NegativeLogLikelihood,
    PerClassAccuracy,
    TopKAccuracy,
)
from pathprune.files import write_atomically
from pathprune.models.adapt import evaluating, model_device

Batches = Iterable[tuple[Tensor, Tensor]]

_FORMAT = "pathprune-evaluation"
_VERSION = "1"
_COLUMNS = ("labels", "predictions", "label_ranks", "nll")
_SKIPPED = -1  # label of a row that stands in for an unreadable image, so that processes have batches of one size


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model makes of each of N images, in the loader's order; every array is `[N]`."""

    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    label_ranks: NDArray[np.int64]  # 0 where the label is the most likely class
    nll: NDArray[np.float64]  # -log probability of the label, nats
    num_classes: int
    class_names: tuple[str, ...] | None = None
    description: str = ""
    reference_predictions: NDArray[np.int64] | None = None  # the reference model's, for the same images

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which images are classified right."""
        return np.equal(self.predictions, self.labels)

    def summary(self) -> dict[str, Any]:
        """The metrics, as JSON-ready values: top1, top5, nll, per_class, num_images and, with a reference, agreement.

        `top5` is over min(5, number of classes) classes; `per_class` has None for classes without images.
        """
        answers = {"predictions": self.predictions, "references": self.labels}
        per_class = PerClassAccuracy().compute(**answers, num_classes=self.num_classes)
        summary = {
            "top1": Accuracy().compute(**answers)["accuracy"],
            "top5": TopKAccuracy().compute(label_ranks=self.label_ranks, k=5)["top_k_accuracy"],
            "nll": NegativeLogLikelihood().compute(nll=self.nll)["nll"],
            "per_class": per_class["per_class_accuracy"],
            "num_images": self.num_images,
        }
        if self.reference_predictions is not None:
            agreement = Agreement().compute(predictions=self.predictions, references=self.reference_predictions)
            summary["agreement"] = agreement["agreement"]
        return summary

    def save(self, path: str | Path) -> None:
        """Write the evaluation to `path` as safetensors; the file appears complete or not at all."""
        path = Path(path)
        columns = {name: getattr(self, name) for name in _COLUMNS}
        if self.reference_predictions is not None:
            columns["reference_predictions"] = self.reference_predictions
        names = list(self.class_names) if self.class_names is not None else None
        about = {"num_classes": self.num_classes, "class_names": names, "description": self.description}
        with write_atomically(path) as part:
            save_file(columns, part, metadata={"format": _FORMAT, "version": _VERSION, "about": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read what `save` wrote; raises `ValueError` for any other file."""
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"cannot read an evaluation from {path}: {error}") from error
        if (metadata.get("format"), metadata.get("version")) != (_FORMAT, _VERSION):
            raise ValueError(
                f"{path} is not an evaluation of format {_FORMAT} version {_VERSION}, "
                f"its metadata says {metadata.get('format')} version {metadata.get('version')}; evaluate again"
            )
        about = json.loads(metadata["about"])
        if about["class_names"] is not None:
            about["class_names"] = tuple(about["class_names"])
        return cls(**columns, **about)


def evaluate_model(
    model: nn.Module,
    loader: Batches,
    *,
    accelerator: Accelerator | None = None,
    reference: Evaluation | None = None,
    class_names: Iterable[str] | None = None,
    description: str = "model",
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Classify every image of `loader` (`(images [B, C, H, W], labels [B])`) once, in eval mode, where `model` is.

    `loader` may be prepared by `accelerator` or not. With several processes each runs its share of a `DataLoader`, and
    all return the same complete result. Rows labelled -1 stand for unreadable images and are left out. `reference` is
    the dense model's evaluation on the same images (for agreement); `on_progress` is called after every batch with the
    number of images done. The model's modes are restored.

    Raises `ValueError` for a label that the head has no class for, for logits that are not finite (named after
    `description`), for no images at all, and for a `reference` on other images.
    """
    accelerator = accelerator or Accelerator()
    device = model_device(model)
    parts: list[Tensor] = []
    done = 0
    num_classes = 0
    with evaluating(model), torch.inference_mode():
        for images, labels in _sharded(loader, accelerator):
            with accelerator.autocast():
                logits = model(images.to(device, non_blocking=True))
            num_classes = _num_classes(logits, len(images), description)
            outcome = _outcome(logits, labels.to(device)).to(accelerator.device)
            # every process sees all of the gathered rows, so all of them raise alike and none is left waiting
            # a single one sees all as it is; gathering would take the end of a loader that is open elsewhere for ours
            gathered = (outcome if accelerator.num_processes == 1 else accelerator.gather_for_metrics(outcome)).cpu()
            _check(gathered, num_classes, done, description)
            parts.append(gathered[gathered[:, 0] != _SKIPPED])
            done += len(gathered)
            if on_progress is not None:
                on_progress(done)
    if not sum(map(len, parts)):
        raise ValueError(f"no images to evaluate {description} on: the loader gave none that could be read")
    labels_N, predictions_N, ranks_N, nll_N, _ = torch.cat(parts).numpy().T
    result = Evaluation(
        labels=labels_N.astype(np.int64),
        predictions=predictions_N.astype(np.int64),
        label_ranks=ranks_N.astype(np.int64),
        nll=nll_N.astype(np.float64),
        num_classes=num_classes,
        class_names=_checked_names(class_names, num_classes),
        description=description,
        reference_predictions=reference.predictions if reference is not None else None,
    )
    if reference is not None:
        check_same_images(result, reference)
    return result


def check_same_images(a: Evaluation, b: Evaluation) -> None:
    """Raise `ValueError` unless both hold the same labels in the same order, as paired statistics need."""
    if not np.array_equal(a.labels, b.labels):
        raise ValueError(
            f"'{a.description}' ({a.num_images} images) and '{b.description}' ({b.num_images} images) were not "
            "evaluated on the same images in the same order; evaluate both on one loader that does not shuffle"
        )


def _sharded(loader: Batches, accelerator: Accelerator) -> Batches:
    """`loader` with this process's share of the batches."""
    if accelerator.num_processes == 1 or isinstance(loader, DataLoaderShard | DataLoaderDispatcher):
        return loader
    if isinstance(loader, DataLoader):
        return accelerator.prepare_data_loader(loader, device_placement=False)  # type: ignore[no-any-return]
    raise ValueError(
        f"{accelerator.num_processes} processes can share a torch DataLoader, got {type(loader).__name__}; "
        "pass a DataLoader or evaluate in one process"
    )


def _num_classes(logits: object, num_images: int, description: str) -> int:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != num_images:
        shape = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{description} must give logits [{num_images}, classes] for {num_images} images, got {shape}")
    return logits.shape[1]


def _outcome(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Reduce logits to five numbers an image: `[B, 5]` label, prediction, rank of the label, nll, all finite?

    Float64 where the device has it: float32 holds class numbers exactly too (up to 2**24).
    """
    logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
    num_classes = logits_BK.shape[1]
    target_B1 = labels_B.clamp(0, num_classes - 1)[:, None]  # labels out of range are reported after gathering
    own_B1 = logits_BK.gather(1, target_B1)
    # equal logits rank in class order, as in argmax, so that rank 0 and a right prediction are the same thing
    earlier_BK = torch.arange(num_classes, device=labels_B.device) < target_B1
    ranks_B = ((logits_BK > own_B1) | ((logits_BK == own_B1) & earlier_BK)).sum(dim=1)
    nll_B = -logits_BK.log_softmax(dim=1).gather(1, target_B1)[:, 0]
    finite_B = logits_BK.isfinite().all(dim=1)
    wide = torch.float32 if logits_BK.device.type == "mps" else torch.float64
    return torch.stack([c.to(wide) for c in (labels_B, logits_BK.argmax(dim=1), ranks_B, nll_B, finite_B)], dim=1)


def _check(outcome_B5: Tensor, num_classes: int, done: int, description: str) -> None:
    outside = (outcome_B5[:, 0] < _SKIPPED) | (outcome_B5[:, 0] >= num_classes)
    if outside.any():
        index = int(outside.nonzero()[0])
        raise ValueError(
            f"image {done + index} has the label {int(outcome_B5[index, 0])}, but {description} has {num_classes} "
            f"classes, 0 to {num_classes - 1}; use a data set with these classes or a model with a head for them"
        )
    broken = outcome_B5[:, 4] == 0
    if broken.any():
        raise ValueError(
            f"{description} gives logits that are not finite (NaN or infinite), first for image "
            f"{done + int(broken.nonzero()[0])}; check its weights, or evaluate it in float32"
        )


def _checked_names(class_names: Iterable[str] | None, num_classes: int) -> tuple[str, ...] | None:
    if class_names is None:
        return None
    names = tuple(class_names)
    if len(names) != num_classes:
        raise ValueError(f"got {len(names)} class names for a model with {num_classes} classes; give one for each")
    return names
