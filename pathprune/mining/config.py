"""Mining section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pathprune.data.class_names import ClassKey
from pathprune.mining.locate import Method
from pathprune.mining.objective_config import ObjectiveConfig
from pathprune.mining.quadrature import Rule
from pathprune.mining.sampling import ClassSource
from pathprune.section import Section, as_tuple, as_word


def _as_tuple_or_none(value: Any) -> Any:
    return None if value is None else as_tuple(value)


def _check_number_or_auto(value: Any) -> Any:
    if value != "auto" and not (type(value) is int and value >= 1):
        raise ValueError(f"got {value!r}; give a whole number of at least 1, or auto")
    return value


def _check_number_auto_or_none(value: Any) -> Any:
    return None if value is None else _check_number_or_auto(value)


class MineConfig(Section):
    """Settings of the location of neuron paths (arXiv 2503.09046)."""

    num_images: int | None = Field(200, ge=1, description="mined images, spread evenly over classes; null: all")
    images_per_class: int | None = Field(None, ge=1, description="most images of each class; replaces num_images")
    classes: Annotated[tuple[ClassKey, ...] | None, BeforeValidator(_as_tuple_or_none)] = Field(
        None, min_length=1, description="mine images of these classes only, by name or index; null: of all classes"
    )
    only_correct: bool = Field(False, description="mine correctly classified images only")
    method: Method = Field("jas", description="joint attribution, or one of the paper's baselines")
    rule: Rule = Field("gauss-legendre", description="quadrature rule; the paper's is left-riemann")
    nodes: Annotated[int | Literal["auto"] | None, BeforeValidator(_check_number_auto_or_none)] = Field(
        None,
        description="quadrature nodes; null: 4, with all tokens 6; the paper: 20; auto: the fewest that are accurate",
    )
    first_nodes: int | None = Field(
        None, ge=1, description="nodes of the first layer; null: as nodes, or 12 with all tokens and nodes: null"
    )
    precision: Annotated[Literal["no", "bf16"], BeforeValidator(as_word)] = Field(
        "no", description="mixed precision of block passes; softmax, sums and scores stay in float32"
    )
    top_k: int = Field(1, ge=1, description="neurons per layer on a path")
    targets: ClassSource = Field("label", description="the class that an image is sampled by, explained by, counted in")
    objective: ObjectiveConfig | None = Field(
        None, description="attributed number; null: class probability, or cosine to the clean embedding without classes"
    )
    batch_size: Annotated[int | Literal["auto"], BeforeValidator(_check_number_or_auto)] = Field(
        16, description="images mined together; auto: as many as fit into memory, at most shard_size"
    )
    shard_size: int = Field(64, ge=1, description="images per shard; a killed run repeats at most one shard")
    check_images: int = Field(16, ge=0, description="images whose paths are compared with the converged integral's")

    @model_validator(mode="after")
    def _auto_needs_check_images(self) -> MineConfig:
        if self.nodes == "auto" and self.check_images == 0:
            raise ValueError("check_images is 0, but nodes: auto is chosen on check_images; give at least 1")
        return self

    @model_validator(mode="before")
    @classmethod
    def _resolve_sample_size(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("images_per_class") is None:
            return values
        if values.get("num_images") is not None:
            raise ValueError("num_images and images_per_class are both given; set one of them to null")
        return {**values, "num_images": None}
