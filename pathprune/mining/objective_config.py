"""Objective section of a recipe."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from pathprune.section import Section

if TYPE_CHECKING:
    from pathprune.mining.objectives import Objective


class ObjectiveConfig(Section):
    """Objective by name; a bare name stands for `{name: NAME}`. `head` is the zero-shot head's safetensors file."""

    name: Literal["class-probability", "label-probability", "zero-shot", "cosine"] = Field(
        description="class-probability: softmax probability of the class. label-probability: sigmoid of the label's "
        "own logit, for multi-label models. cosine: cosine to the clean embedding. zero-shot: probability of the "
        "class among the text embeddings of `head`."
    )
    head: str | None = Field(
        None,
        description="File of the zero-shot head: safetensors with text_embeddings [classes, D] and, optionally, "
        "logit_scale.",
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        mapping = handler(schema)
        name = handler.resolve_ref_schema(mapping)["properties"]["name"]
        return {"anyOf": [name, mapping], "description": "A name, or a mapping with a name and a head."}

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
        from pathprune.mining.objectives import ClassProbability, CleanCosine, LabelProbability
        from pathprune.mining.zero_shot import ZeroShot

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
