"""Zero-shot heads: classes given by text embeddings, for CLIP and similar towers."""

# B images, K numbers of an embedding, C classes

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import normalize

from pathprune.mining.objectives import ObjectiveFunction, gather_targets

CLIP_LOGIT_SCALE = 100.0  # CLIP's learned temperature was clipped at 100 and ended there (arXiv 2103.00020, 2.5)


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """Softmax probability of the target class, from cosines with one text embedding per class.

    - text_CK: one embedding per class, float `[C, K]`, of any length, in the space of the model's output.
    - logit_scale: the factor of the cosines. CLIP checkpoints store its logarithm.
    - class_names: names of the classes; None if unknown.

    Raises `ValueError` for embeddings of another shape or dtype, that are zero or not finite, for fewer than two
    classes, for a scale that is not positive and finite, and for a wrong number of names.
    """

    text_CK: Tensor
    logit_scale: float = CLIP_LOGIT_SCALE
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        text_CK = self.text_CK
        if text_CK.ndim != 2 or not text_CK.is_floating_point() or len(text_CK) < 2:
            raise ValueError(
                f"text embeddings are {text_CK.dtype} of shape {list(text_CK.shape)}; expected floats [C, K], one row "
                "for each of at least two classes"
            )
        if not bool(text_CK.isfinite().all() and text_CK.any(dim=1).all()):
            raise ValueError("text embeddings have rows that are zero, NaN or infinite; recompute these classes")
        if not 0 < self.logit_scale < float("inf"):
            raise ValueError(f"logit_scale={self.logit_scale} must be positive and finite; CLIP's is 100")
        if self.class_names is not None and len(self.class_names) != len(text_CK):
            raise ValueError(
                f"{len(self.class_names)} class names were given for {len(text_CK)} text embeddings; give one per class"
            )

    @classmethod
    def load(cls, file: str | Path) -> ZeroShot:
        """Read a safetensors file with `text_embeddings` `[C, K]` and, optionally, `logit_scale` (one number).

        The file's metadata may name the classes: a JSON list under `class_names`. Raises `ValueError` for any other
        content.
        """
        file = Path(file).expanduser()
        if not file.is_file():
            raise ValueError(f"zero-shot head {file} does not exist; give a safetensors file with 'text_embeddings'")
        try:
            with safe_open(file, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
                names = (opened.metadata() or {}).get("class_names")
        except SafetensorError as error:
            raise ValueError(f"zero-shot head {file} is not a safetensors file: {error}") from error
        if "text_embeddings" not in tensors or not set(tensors) <= {"text_embeddings", "logit_scale"}:
            raise ValueError(
                f"zero-shot head {file} holds {', '.join(tensors) or 'nothing'}; expected 'text_embeddings' [C, K] "
                "and, optionally, 'logit_scale'"
            )
        scale = tensors.get("logit_scale", torch.tensor(CLIP_LOGIT_SCALE))
        if scale.numel() != 1:
            raise ValueError(f"zero-shot head {file}: logit_scale has shape {list(scale.shape)}; expected one number")
        try:
            class_names = None if names is None else tuple(map(str, json.loads(names)))
            return cls(tensors["text_embeddings"], float(scale), class_names)
        except ValueError as error:
            raise ValueError(f"zero-shot head {file}: {error}") from error

    def class_logits(self, output_BK: Tensor) -> Tensor:
        """Return the scaled cosines `[B, C]`. Raises `ValueError` for an output of another dimension."""
        if output_BK.shape[1] != self.text_CK.shape[1]:
            raise ValueError(
                f"text embeddings have dimension {self.text_CK.shape[1]}, but the model's output has "
                f"{output_BK.shape[1]}; use the head of the text tower that belongs to this model"
            )
        text_CK = normalize(self.text_CK.to(output_BK), dim=-1)
        return self.logit_scale * normalize(output_BK, dim=-1) @ text_CK.T

    def bind(self, clean_BK: Tensor, targets_B: Tensor) -> ObjectiveFunction:
        return lambda output_BK: gather_targets(self.class_logits(output_BK).softmax(-1), targets_B)


class ZeroShotClassifier(nn.Module):
    """Tower followed by a zero-shot head: images `[B, 3, H, W]` -> logits `[B, C]`."""

    def __init__(self, tower: nn.Module, head: ZeroShot) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, images: Tensor) -> Tensor:
        output_BK = self.tower(images)
        with torch.autocast(output_BK.device.type, enabled=False):  # cosines in half precision tie with each other
            return self.head.class_logits(output_BK.to(torch.promote_types(output_BK.dtype, torch.float32)))
