"""How neuron paths are located, as a recipe says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pathprune.data.class_names import ClassKey
from pathprune.mining.objectives import ObjectiveConfig
from pathprune.section import Section, as_tuple, as_word


def _tuple_or_none(value: Any) -> Any:
    return None if value is None else as_tuple(value)


def _number_or_auto(value: Any) -> Any:
    if value != "auto" and not (type(value) is int and value >= 1):
        raise ValueError(f"{value!r} is neither a number of at least 1 nor auto")
    return value


def _number_or_auto_or_none(value: Any) -> Any:
    return None if value is None else _number_or_auto(value)


NumberOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)]


class MineConfig(Section):
    """How neuron paths are located (arXiv 2503.09046)."""

    num_images: int | None = Field(200, ge=1, description="mined images, spread evenly over classes; null: all")
    images_per_class: int | None = Field(None, ge=1, description="up to so many of every class instead of num_images")
    classes: Annotated[tuple[ClassKey, ...] | None, BeforeValidator(_tuple_or_none)] = Field(
        None, min_length=1, description="only images of these classes, by name or index; null: of all"
    )
    only_correct: bool = Field(False, description="only images that the model gets right")
    method: Literal["jas", "activation", "influence-pattern"] = Field(
        "jas", description="joint attribution, or one of the paper's baselines"
    )
    rule: Literal["gauss-legendre", "left-riemann"] = Field(
        "gauss-legendre", description="quadrature rule; left-riemann is the published one"
    )
    nodes: Annotated[int | Literal["auto"] | None, BeforeValidator(_number_or_auto_or_none)] = Field(
        None, description="quadrature nodes; null: 4, with all tokens 6; published: 20; auto: the fewest that do"
    )
    first_nodes: int | None = Field(
        None,
        ge=1,
        description="those of the first layer; null: as nodes, or 12 with all tokens if nodes is null too",
    )
    precision: Annotated[Literal["no", "bf16"], BeforeValidator(as_word)] = Field(
        "no", description="mixed precision of block passes; softmax, sums and scores stay in float32"
    )
    top_k: int = Field(1, ge=1, description="neurons per layer on a path")
    targets: Literal["label", "prediction"] = Field(
        "label", description="the class of an image: sampled by, explained, and counted for"
    )
    objective: ObjectiveConfig | None = Field(
        None, description="what is attributed; null: the class's probability, or the clean embedding without classes"
    )
    batch_size: NumberOrAuto = Field(
        16, description="images mined together; auto: as many as fit into memory, at most shard_size"
    )
    shard_size: int = Field(64, ge=1, description="images per stored part: a killed run repeats at most one part")
    check_images: int = Field(16, ge=0, description="images on which paths are compared with converged ones")

    @model_validator(mode="after")
    def _auto_is_checked(self) -> MineConfig:
        if self.nodes == "auto" and self.check_images == 0:
            raise ValueError("nodes: auto is chosen on check_images; give at least 1")
        return self

    @model_validator(mode="before")
    @classmethod
    def _one_sample_size(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("images_per_class") is None:
            return values
        if values.get("num_images") is not None:
            raise ValueError("num_images and images_per_class are both given; set one of them to null")
        return {**values, "num_images": None}
