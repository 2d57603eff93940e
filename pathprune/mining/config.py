"""The `mine` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pathprune.data.class_names import ClassKey
from pathprune.mining.choices import ClassSource, Method, Rule
from pathprune.mining.objective_config import ObjectiveConfig
from pathprune.section import AsTuple, Section, as_word


def _check_number_or_auto(value: Any) -> Any:
    if value != "auto" and not (type(value) is int and value >= 1):
        raise ValueError(f"got {value!r}; give a whole number of at least 1, or auto")
    return value


def _check_number_auto_or_none(value: Any) -> Any:
    return None if value is None else _check_number_or_auto(value)


class MineConfig(Section):
    """Location of neuron paths (arXiv 2503.09046)."""

    num_images: int | None = Field(
        200, ge=1, description="Images to mine, spread evenly over the classes. null: all images of the split."
    )
    images_per_class: int | None = Field(
        None, ge=1, description="Images to mine of every class, at most. Replaces num_images. null: no limit."
    )
    classes: Annotated[tuple[ClassKey, ...] | None, AsTuple] = Field(
        None,
        min_length=1,
        description="Classes to mine, by name or index: a class or a list such as [cat, 3]. null: all classes.",
    )
    only_correct: bool = Field(False, description="Mine only images that the model classifies correctly.")
    method: Method = Field(
        "jas", description="Method: joint attribution score, or one of the paper's baselines for comparison."
    )
    rule: Rule = Field(
        "gauss-legendre", description="Quadrature rule. The published left-riemann is less accurate per node."
    )
    nodes: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"] | None, BeforeValidator(_check_number_auto_or_none)
    ] = Field(
        None,
        description="Quadrature nodes. null: 4 for class-token paths, 6 for all-token paths, as accurate as more "
        "nodes (published: 20 of left-riemann). auto: the fewest nodes that agree with the converged integral on 99.5 "
        "% of the path neurons, or on 98 % in mixed precision.",
    )
    first_nodes: int | None = Field(
        None,
        ge=1,
        description="Quadrature nodes of the first layer. null: the number of nodes; if nodes is null too, 12 for "
        "all-token paths.",
    )
    precision: Annotated[Literal["no", "bf16"], BeforeValidator(as_word)] = Field(
        "no", description="Mixed precision of the blocks. Softmax, sums and scores are always in float32."
    )
    top_k: int = Field(1, ge=1, description="Neurons per layer on a path.")
    targets: ClassSource = Field(
        "label", description="Class of an image: its label, or the model's prediction, which needs no labels."
    )
    objective: ObjectiveConfig | None = Field(
        None,
        description="Number whose gradient is attributed. null: class-probability; for a model without classes, "
        "cosine.",
    )
    batch_size: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], BeforeValidator(_check_number_or_auto)] = (
        Field(
            16,
            description="Images per batch. Memory grows with batch_size × nodes. auto: as many as fit into memory, at "
            "most shard_size.",
        )
    )
    shard_size: int = Field(
        64, ge=1, description="Images per shard. An interrupted run repeats at most one shard; processes share shards."
    )
    check_images: int = Field(
        16, ge=0, description="Images whose paths are compared with those of a converged integral. 0: no check."
    )

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
