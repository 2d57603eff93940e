"""Labelled images: data sources, splits, samples and batches."""

from typing import TYPE_CHECKING

from pathprune.lazy import import_on_use

if TYPE_CHECKING:
    from pathprune.data.images import SKIPPED, UNLABELLED, DataError, LabelledImages, Transform, evaluation_transform
    from pathprune.data.loaders import load_batches, make_loader
    from pathprune.data.samples import check_labels, refuse_overlap, sample_balanced, sample_stratified
    from pathprune.data.sources import Labels, demo_data_folder, open_source, read_split
else:
    __getattr__ = import_on_use(__name__)

__all__ = [
    "SKIPPED",
    "UNLABELLED",
    "DataError",
    "LabelledImages",
    "Labels",
    "Transform",
    "check_labels",
    "demo_data_folder",
    "evaluation_transform",
    "load_batches",
    "make_loader",
    "open_source",
    "read_split",
    "refuse_overlap",
    "sample_balanced",
    "sample_stratified",
]
