"""Evaluations with given correct and incorrect predictions."""

import numpy as np

from pathprune.evaluation import Evaluation


def evaluation(correct: list[int] | np.ndarray, *, name: str = "model") -> Evaluation:
    """Return an evaluation of two classes and labels 0 whose image `i` is classified correctly if `correct[i]`."""
    is_correct = np.asarray(correct, dtype=bool)
    predictions = (~is_correct).astype(np.int64)
    return Evaluation(
        labels=np.zeros(len(is_correct), dtype=np.int64),
        predictions=predictions,
        label_ranks=predictions,
        nll=np.where(is_correct, 0.1, 2.0),
        num_classes=2,
        description=name,
    )
