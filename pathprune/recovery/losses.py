"""Loss of a training: cross-entropy to the labels, and distances to a teacher's logits and block states."""

# B images, K classes, T tokens, D channels of the residual stream

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from pathprune.recovery.config import TrainConfig
from pathprune.recovery.outputs import Output


class TrainingLoss(nn.Module):
    """Weighted terms of the loss of a config: `labels`, `logits`, `hidden`. The loss is their sum."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.soft_cross_entropy: nn.Module = SoftTargetCrossEntropy()  # type: ignore[no-untyped-call]

    def forward(self, student: Output, targets: Tensor, teacher: Output | None = None) -> dict[str, Tensor]:
        """Return the terms; `targets` are labels `[B]` or, with mixup, class probabilities `[B, K]`."""
        terms = {}
        if self.config.labels:
            logits_BK = student.logits.float()
            if targets.ndim == 2:
                to_labels = self.soft_cross_entropy(logits_BK, targets)
            else:
                to_labels = cross_entropy(logits_BK, targets, label_smoothing=self.config.label_smoothing)
            terms["labels"] = self.config.labels * to_labels
        distill = self.config.distill
        if distill is not None:
            assert teacher is not None, "train() checks that there is a teacher"
            if distill.logits:
                to_logits = softened_divergence(student.logits, teacher.logits, temperature=distill.temperature)
                terms["logits"] = distill.logits * to_logits
            if distill.hidden:
                terms["hidden"] = distill.hidden * relative_distance(student.states, teacher.states)
        return terms


def softened_divergence(student_BK: Tensor, teacher_BK: Tensor, *, temperature: float) -> Tensor:
    """Return T² KL(teacher ‖ student) of the class probabilities at temperature T, averaged over images.

    The factor T² makes the size of the gradient independent of the temperature (arXiv 1503.02531).
    """
    logp_BK, logq_BK = ((logits.float() / temperature).log_softmax(-1) for logits in (student_BK, teacher_BK))
    return temperature**2 * kl_div(logp_BK, logq_BK, reduction="batchmean", log_target=True)


def relative_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return ‖s − t‖² / ‖t‖² of the token states `[B, T, D]`, averaged over tokens, images and blocks.

    Each token is normalised by its own norm: otherwise a few tokens of large norm would dominate.
    """
    distances = [
        ((s_BTD.float() - t_BTD.float()).square().sum(-1) / t_BTD.float().square().sum(-1).clamp(min=1e-6)).mean()
        for s_BTD, t_BTD in zip(student, teacher, strict=True)
    ]
    return torch.stack(distances).mean()
