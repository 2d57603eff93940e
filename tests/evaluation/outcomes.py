"""Make evaluations whose right and wrong answers are given."""

import numpy as np

from pathprune.evaluation import Evaluation


def evaluation(correct: list[int] | np.ndarray, *, name: str = "model") -> Evaluation:
    """Two classes, label 0 everywhere; image `i` is classified right where `correct[i]` is true."""
    right = np.asarray(correct, dtype=bool)
    wrong = (~right).astype(np.int64)
    return Evaluation(
        labels=np.zeros(len(right), dtype=np.int64),
        predictions=wrong,
        label_ranks=wrong,
        nll=np.where(right, 0.1, 2.0),
        num_classes=2,
        description=name,
    )
