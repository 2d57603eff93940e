"""What a path explains: one number of each image, read off the model's output.

An objective says which classes an output `[B, K]` (logits, or an embedding) tells apart, and gives the function of it
whose gradient is attributed.
"""

# B images, K numbers of an output, C classes

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

CLIP_LOGIT_SCALE = 100.0  # what CLIP's temperature was clipped at, and ended at (arXiv 2103.00020, 2.5)

Readout = Callable[[Tensor], Tensor]
"""Output `[B, K]` -> the number of each image that its path should explain, `[B]`."""


@runtime_checkable
class Objective(Protocol):
    """What `locate_paths` attributes. Called with outputs in float32 or better."""

    def class_logits(self, output_BK: Tensor) -> Tensor | None:
        """The logits `[B, C]` of the classes among which targets and predictions are; None where there are none."""

    def readout(self, clean_BK: Tensor, targets_B: Tensor) -> Readout:
        """The function to attribute, for images with these clean outputs and targets (-1 where there are no classes).

        Gradients flow through it, and it may be called with other outputs of the same images only.
        """


@dataclass(frozen=True)
class ClassProbability:
    """The softmax probability of the target class, as published. For classifiers."""

    def class_logits(self, output_BK: Tensor) -> Tensor:
        return output_BK

    def readout(self, clean_BK: Tensor, targets_B: Tensor) -> Readout:
        return lambda output_BK: _at(output_BK.softmax(-1), targets_B)


@dataclass(frozen=True)
class LabelProbability:
    """The sigmoid of the target class's own logit. For multi-label classifiers, whose classes do not compete."""

    def class_logits(self, output_BK: Tensor) -> Tensor:
        return output_BK

    def readout(self, clean_BK: Tensor, targets_B: Tensor) -> Readout:
        return lambda output_BK: _at(output_BK, targets_B).sigmoid()


@dataclass(frozen=True)
class CleanCosine:
    """The cosine with the image's own clean embedding. For towers without classes."""

    def class_logits(self, output_BK: Tensor) -> None:
        return None

    def readout(self, clean_BK: Tensor, targets_B: Tensor) -> Readout:
        return lambda output_BK: cosine_similarity(output_BK, clean_BK, dim=-1)


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """The target class's softmax probability among cosines with one text embedding per class. For CLIP and its like.

    `text_CK` `[C, K]` are the classes' embeddings, in the space of the model's output, of any length. `logit_scale`
    multiplies the cosines: the factor itself, not its logarithm, which CLIP's checkpoints store.
    """

    text_CK: Tensor
    logit_scale: float = CLIP_LOGIT_SCALE
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        text = self.text_CK
        if text.ndim != 2 or not text.is_floating_point() or len(text) < 2:
            raise ValueError(
                f"text embeddings are {text.dtype} of shape {list(text.shape)}; expected floats [C, K], a row for each "
                "of at least two classes"
            )
        if not bool(text.isfinite().all() and text.any(dim=1).all()):
            raise ValueError("text embeddings have rows that are zero, NaN or infinite; compute these classes again")
        if not 0 < self.logit_scale < float("inf"):
            raise ValueError(f"logit_scale={self.logit_scale} must be positive and finite (CLIP's is 100)")
        if self.class_names is not None and len(self.class_names) != len(text):
            raise ValueError(f"{len(self.class_names)} class names were given for {len(text)} text embeddings")

    @classmethod
    def load(cls, file: str | Path) -> ZeroShot:
        """Read a safetensors file with `text_embeddings` `[C, K]` and, optionally, `logit_scale` (one number); its
        metadata may name the classes under `class_names`, as a JSON list.

        Raises `ValueError` for anything else.
        """
        file = Path(file).expanduser()
        if not file.is_file():
            raise ValueError(f"zero-shot head {file} does not exist; give a safetensors file with 'text_embeddings'")
        try:
            with safe_open(file, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
                names = (opened.metadata() or {}).get("class_names")
        except SafetensorError as error:
            raise ValueError(f"zero-shot head {file} is no safetensors file: {error}") from error
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
        if output_BK.shape[1] != self.text_CK.shape[1]:
            raise ValueError(
                f"text embeddings have {self.text_CK.shape[1]} numbers, the model's output {output_BK.shape[1]}; the "
                "head must be of the text tower that belongs to this model"
            )
        text_CK = normalize(self.text_CK.to(output_BK), dim=-1)
        return self.logit_scale * normalize(output_BK, dim=-1) @ text_CK.T

    def readout(self, clean_BK: Tensor, targets_B: Tensor) -> Readout:
        return lambda output_BK: _at(self.class_logits(output_BK).softmax(-1), targets_B)


@dataclass(frozen=True)
class GivenReadout:
    """A function of the output alone; `classes`: the output is logits, whose classes targets and predictions name."""

    function: Readout
    classes: bool

    def class_logits(self, output_BK: Tensor) -> Tensor | None:
        return output_BK if self.classes else None

    def readout(self, clean_BK: Tensor, targets_B: Tensor) -> Readout:
        return self.function


class ZeroShotClassifier(nn.Module):
    """A tower whose outputs are the logits of a zero-shot head."""

    def __init__(self, tower: nn.Module, head: ZeroShot) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, images: Tensor) -> Tensor:
        output_BK = self.tower(images)
        with torch.autocast(output_BK.device.type, enabled=False):  # cosines in half precision tie with each other
            return self.head.class_logits(output_BK.to(torch.promote_types(output_BK.dtype, torch.float32)))


class ObjectiveConfig(BaseModel):
    """An objective as a recipe names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["class-probability", "label-probability", "zero-shot", "cosine"]
    head: str | None = None  # of zero-shot: the safetensors file that `ZeroShot.load` reads

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _head_of_zero_shot(self) -> ObjectiveConfig:
        if (self.name == "zero-shot") != (self.head is not None):
            raise ValueError(
                f"objective '{self.name}' takes no head"
                if self.head is not None
                else "objective 'zero-shot' needs a head: the safetensors file with its text embeddings"
            )
        return self

    def make(self) -> Objective:
        """The objective; raises `ValueError` where the head's file cannot be used."""
        if self.head is not None:
            return ZeroShot.load(self.head)
        plain: dict[str, Objective] = {
            "class-probability": ClassProbability(),
            "label-probability": LabelProbability(),
            "cosine": CleanCosine(),
        }
        return plain[self.name]

    def spec(self) -> dict[str, str]:
        """Plain data that stands for the objective, its head's content included and not where that is."""
        if self.head is None:
            return {"name": self.name}
        content = Path(self.head).expanduser().read_bytes()
        return {"name": self.name, "head": hashlib.blake2b(content, digest_size=12).hexdigest()}


def objective_for(num_classes: int, given: Objective | Readout | None = None) -> Objective:
    """`given`, or by default the class's probability and, for a model without classes, the clean embedding.

    `num_classes` are those of the model's own classifier. Raises `ValueError` where the objective is about one, and
    there is none.
    """
    if given is None:
        return ClassProbability() if num_classes else CleanCosine()
    if isinstance(given, ClassProbability | LabelProbability) and num_classes == 0:
        raise ValueError(
            "the model has no classifier whose classes could be explained; choose the objective cosine, or zero-shot "
            "with a head of text embeddings"
        )
    return given if isinstance(given, Objective) else GivenReadout(given, classes=num_classes > 0)


def _at(values_BC: Tensor, targets_B: Tensor) -> Tensor:
    return values_BC.gather(1, targets_B[:, None]).squeeze(1)
