"""What training lowers: distance to the labels, to a teacher's class probabilities, and to its states."""

# B images, K classes, T tokens, D channels of the residual stream

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from pathprune.recovery.config import TrainConfig


class Answer(NamedTuple):
    """What a model makes of a batch: logits `[B, K]` and, where asked for, the states after every block `[B, T, D]`."""

    logits: Tensor
    states: tuple[Tensor, ...] = ()


class Objective(nn.Module):
    """The parts of the loss that a config asks for, weighted; their sum is what is trained on."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.soft: nn.Module = SoftTargetCrossEntropy()  # type: ignore[no-untyped-call]

    def forward(self, student: Answer, targets: Tensor, teacher: Answer | None = None) -> dict[str, Tensor]:
        """`targets` are labels `[B]` or, mixed, shares `[B, K]`; `teacher` is given where the config distils."""
        parts = {}
        if self.config.labels:
            logits_BK = student.logits.float()
            if targets.ndim == 2:
                own = self.soft(logits_BK, targets)
            else:
                own = cross_entropy(logits_BK, targets, label_smoothing=self.config.label_smoothing)
            parts["labels"] = self.config.labels * own
        distill = self.config.distill
        if distill is not None:
            assert teacher is not None, "train() checks that there is a teacher"
            if distill.logits:
                softened = softened_divergence(student.logits, teacher.logits, temperature=distill.temperature)
                parts["logits"] = distill.logits * softened
            if distill.hidden:
                parts["hidden"] = distill.hidden * relative_distance(student.states, teacher.states)
        return parts


def softened_divergence(student_BK: Tensor, teacher_BK: Tensor, *, temperature: float) -> Tensor:
    """T² KL(teacher ‖ student) of the classes' probabilities at temperature T, mean over images (arXiv 1503.02531).

    The factor keeps the gradient's size, so that a weight means the same at every temperature.
    """
    logp_BK, logq_BK = ((logits.float() / temperature).log_softmax(-1) for logits in (student_BK, teacher_BK))
    return temperature**2 * kl_div(logp_BK, logq_BK, reduction="batchmean", log_target=True)


def relative_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """‖s − t‖² / ‖t‖² of every token's state, mean over tokens, images and blocks: of states `[B, T, D]` each.

    Relative to each token, since a few tokens of large norm would otherwise be all that counts.
    """
    distances = [
        ((s_BTD.float() - t_BTD.float()).square().sum(-1) / t_BTD.float().square().sum(-1).clamp(min=1e-6)).mean()
        for s_BTD, t_BTD in zip(student, teacher, strict=True)
    ]
    return torch.stack(distances).mean()
