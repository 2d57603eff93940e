"""Objective section of a recipe."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from pathprune.mining.objectives import ClassProbability, CleanCosine, LabelProbability, Objective
from pathprune.mining.zero_shot import ZeroShot
from pathprune.section import Section


class ObjectiveConfig(Section):
    """Objective by name; a bare name stands for `{name: NAME}`. `head` is the zero-shot head's safetensors file."""

    name: Literal["class-probability", "label-probability", "zero-shot", "cosine"]
    head: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_head(self) -> ObjectiveConfig:
        if self.name == "zero-shot" and self.head is None:
            raise ValueError("objective 'zero-shot' needs a head: the safetensors file with its text embeddings")
        if self.name != "zero-shot" and self.head is not None:
            raise ValueError(f"objective '{self.name}' takes no head; leave it out")
        return self

    def build(self) -> Objective:
        """Return the objective. Raises `ValueError` if the head's file is unusable."""
        if self.head is not None:
            return ZeroShot.load(self.head)
        objectives: dict[str, Objective] = {
            "class-probability": ClassProbability(),
            "label-probability": LabelProbability(),
            "cosine": CleanCosine(),
        }
        return objectives[self.name]

    def spec(self) -> dict[str, str]:
        """Return plain data that identifies the objective: the head by its content, not by its path."""
        if self.head is None:
            return {"name": self.name}
        content = Path(self.head).expanduser().read_bytes()
        return {"name": self.name, "head": hashlib.blake2b(content, digest_size=12).hexdigest()}
