"""Evaluation of a classifier on labelled images, under Accelerate on any device and number of processes.

A model is run once. Its outcome for every image is stored in an `Evaluation`, which is small. Metrics, intervals and
comparisons are computed from evaluations.
"""

# B images of a batch, N images, K classes

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

from pathprune.data import SKIPPED
from pathprune.evaluation.metrics import (
    Accuracy,
    Agreement,
    NegativeLogLikelihood,
    PerClassAccuracy,
    TopKAccuracy,
)
from pathprune.files import write_atomically
from pathprune.models.adapt import evaluating, find_device

Batches = Iterable[tuple[Tensor, Tensor]]

_FORMAT = "pathprune-evaluation"
_VERSION = "1"
_COLUMNS = ("labels", "predictions", "label_ranks", "nll")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model's outcome for each of N images, in the loader's order; every array is `[N]`."""

    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    label_ranks: NDArray[np.int64]  # rank of the label's logit; 0: the label is the prediction
    nll: NDArray[np.float64]  # negative log-likelihood of the label, in nats
    num_classes: int
    class_names: tuple[str, ...] | None = None
    description: str = ""
    reference_predictions: NDArray[np.int64] | None = None  # of the reference model on the same images

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Mask of the images that are classified correctly."""
        return np.equal(self.predictions, self.labels)

    def summary(self) -> dict[str, Any]:
        """Return JSON-ready metrics: top1, top5, nll, per_class, num_images, and agreement if there is a reference.

        `top5` is over the first `min(5, num_classes)` classes. `per_class` has None for a class without images.
        """
        columns = {"predictions": self.predictions, "references": self.labels}
        per_class = PerClassAccuracy().compute(**columns, num_classes=self.num_classes)
        summary = {
            "top1": Accuracy().compute(**columns)["accuracy"],
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
        """Write the evaluation to `path` as a safetensors file, atomically."""
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
        """Load an evaluation that `save` wrote; raise `ValueError` for any other file."""
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"cannot read an evaluation from {path}: {error}") from error
        if (metadata.get("format"), metadata.get("version")) != (_FORMAT, _VERSION):
            raise ValueError(
                f"{path} is not an evaluation of format {_FORMAT} version {_VERSION}: its metadata says format "
                f"{metadata.get('format')} version {metadata.get('version')}; evaluate again"
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
    """Classify every image of `loader` once, in eval mode on the model's device, and return the outcomes.

    `loader` yields `(images [B, C, H, W], labels [B])`; `accelerator` may have prepared it. Each of several processes
    evaluates its share of a `DataLoader`, and all return the same complete result. Images with the label `SKIPPED`
    could not be read and are dropped. `reference` is the dense model's evaluation on the same images, from which
    agreement is computed. `on_progress` is called after every batch with the number of images evaluated. The training
    mode of every module is restored.

    Raises `ValueError` for a label without a class in the head, for logits that are not finite, for a loader without
    readable images, and for a `reference` on other images. Messages name the model by `description`.
    """
    accelerator = accelerator or Accelerator()
    device = find_device(model)
    parts: list[Tensor] = []
    done = 0
    num_classes = 0
    with evaluating(model), torch.inference_mode():
        for images, labels in _shard(loader, accelerator):
            with accelerator.autocast():
                logits = model(images.to(device, non_blocking=True))
            num_classes = _count_classes(logits, len(images), description)
            outcomes = _reduce_logits(logits, labels.to(device)).to(accelerator.device)
            # Every process checks all gathered rows: all raise the same error, and none waits for the others.
            # A single process does not gather: gather_for_metrics would cut the rows to the last batch of any other
            # loader that is being iterated, such as the loader of a training epoch.
            if accelerator.num_processes > 1:
                outcomes = accelerator.gather_for_metrics(outcomes)
            outcomes = outcomes.cpu()
            _check_outcomes(outcomes, num_classes, done, description)
            parts.append(outcomes[outcomes[:, 0] != SKIPPED])
            done += len(outcomes)
            if on_progress is not None:
                on_progress(done)
    if not sum(map(len, parts)):
        raise ValueError(f"no images to evaluate {description} on: no image of the loader can be read; check the data")
    labels_N, predictions_N, ranks_N, nll_N, _ = torch.cat(parts).numpy().T
    result = Evaluation(
        labels=labels_N.astype(np.int64),
        predictions=predictions_N.astype(np.int64),
        label_ranks=ranks_N.astype(np.int64),
        nll=nll_N.astype(np.float64),
        num_classes=num_classes,
        class_names=_check_class_names(class_names, num_classes),
        description=description,
        reference_predictions=reference.predictions if reference is not None else None,
    )
    if reference is not None:
        check_same_images(result, reference)
    return result


def check_same_images(a: Evaluation, b: Evaluation) -> None:
    """Raise `ValueError` unless both evaluations have the same labels in the same order, as paired statistics need."""
    if not np.array_equal(a.labels, b.labels):
        raise ValueError(
            f"'{a.description}' ({a.num_images} images) and '{b.description}' ({b.num_images} images) were not "
            "evaluated on the same images in the same order; evaluate both with one loader that does not shuffle"
        )


def _shard(loader: Batches, accelerator: Accelerator) -> Batches:
    """Return a loader with this process's share of the batches."""
    if accelerator.num_processes == 1 or isinstance(loader, DataLoaderShard | DataLoaderDispatcher):
        return loader
    if isinstance(loader, DataLoader):
        return accelerator.prepare_data_loader(loader, device_placement=False)  # type: ignore[no-any-return]
    raise ValueError(
        f"{accelerator.num_processes} processes can share only a torch DataLoader, got {type(loader).__name__}; "
        "pass a DataLoader or evaluate in one process"
    )


def _count_classes(logits: object, num_images: int, description: str) -> int:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != num_images:
        shape = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"{description} must return logits [{num_images}, classes] for {num_images} images, got {shape}"
        )
    return logits.shape[1]


def _reduce_logits(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Reduce logits to one row per image: `[B, K]` -> `[B, 5]` label, prediction, rank of the label, nll, is finite.

    Rows are float64, or float32 on MPS, which lacks float64. Float32 holds class indices exactly up to 2**24.
    """
    logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
    num_classes = logits_BK.shape[1]
    target_B1 = labels_B.clamp(0, num_classes - 1)[:, None]  # _check_outcomes reports labels out of range
    own_B1 = logits_BK.gather(1, target_B1)
    # Equal logits rank in class order, as in argmax: rank 0 means that the prediction is the label.
    earlier_BK = torch.arange(num_classes, device=labels_B.device) < target_B1
    ranks_B = ((logits_BK > own_B1) | ((logits_BK == own_B1) & earlier_BK)).sum(dim=1)
    nll_B = -logits_BK.log_softmax(dim=1).gather(1, target_B1)[:, 0]
    finite_B = logits_BK.isfinite().all(dim=1)
    wide = torch.float32 if logits_BK.device.type == "mps" else torch.float64
    return torch.stack([c.to(wide) for c in (labels_B, logits_BK.argmax(dim=1), ranks_B, nll_B, finite_B)], dim=1)


def _check_outcomes(outcome_B5: Tensor, num_classes: int, done: int, description: str) -> None:
    """Raise `ValueError` for a label out of range or logits that are not finite; `done` images came before."""
    outside = (outcome_B5[:, 0] < SKIPPED) | (outcome_B5[:, 0] >= num_classes)
    if outside.any():
        index = int(outside.nonzero()[0])
        raise ValueError(
            f"image {done + index} has the label {int(outcome_B5[index, 0])}, but {description} has {num_classes} "
            f"classes, 0 to {num_classes - 1}; use a data set with these classes, or a model whose head has more"
        )
    broken = outcome_B5[:, 4] == 0
    if broken.any():
        raise ValueError(
            f"{description} returns logits that are not finite (NaN or infinite), first for image "
            f"{done + int(broken.nonzero()[0])}; check the weights, or evaluate in float32"
        )


def _check_class_names(class_names: Iterable[str] | None, num_classes: int) -> tuple[str, ...] | None:
    if class_names is None:
        return None
    names = tuple(class_names)
    if len(names) != num_classes:
        raise ValueError(f"got {len(names)} class names for a model with {num_classes} classes; give one per class")
    return names
