"""How many neurons go, and from where, as a recipe says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pathprune.scoring import get_criterion
from pathprune.section import AsTuple, Section, distinct


class PruneConfig(Section):
    """How many neurons go, and from where. Ratios are the fraction *removed*."""

    ratio: Annotated[tuple[float, ...], AsTuple] = Field(
        (0.5,), description="fraction removed of what `budget` says: one number, or a list"
    )
    budget: Literal["neurons", "params", "macs", "latency"] = Field(
        "neurons", description="what ratio is a fraction of: MLP neurons, or the whole model's cost"
    )
    max_drop: float | None = Field(
        None, ge=0, lt=100, description="instead of a ratio: points of top-1 that may be lost on data.splits.validation"
    )
    scope: Literal["uniform", "global"] = Field("uniform", description="the same share of every block, or by score")
    normalize: Literal["none", "mean", "damage"] = Field("none", description="how a global budget compares blocks")
    round_to: int = Field(1, ge=1, description="kept widths are multiples of this; 8 or 64 suit GPUs")
    min_width: int = Field(1, ge=1, description="neurons that every block keeps")
    block_ratios: dict[int, float] = Field(default_factory=dict, description="fraction removed of single blocks")
    exclude_blocks: Annotated[tuple[int, ...], AsTuple] = Field((), description="blocks that keep every neuron")
    save: Annotated[tuple[str, ...], AsTuple] = Field(
        ("path",), description="criteria whose pruned models are saved; all: every one"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_budget(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("max_drop") is None:
            return values
        if values.get("ratio"):
            raise ValueError("ratio and max_drop are both given; set one of them to null")
        return {**values, "ratio": ()}

    @model_validator(mode="after")
    def _some_budget(self) -> Self:
        if not self.ratio and self.max_drop is None:
            raise ValueError("there is neither a ratio nor a max_drop; give one of them")
        if self.normalize == "damage" and self.scope != "global":
            raise ValueError(
                "normalize 'damage' sets blocks' widths, which scope 'uniform' does not; use scope 'global'"
            )
        return self

    @field_validator("save")
    @classmethod
    def _criteria(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name != "all":
                get_criterion(name)
        return value

    @field_validator("ratio", "block_ratios")
    @classmethod
    def _fractions(cls, value: Any) -> Any:
        for ratio in value.values() if isinstance(value, dict) else value:
            if not 0 <= ratio < 1:
                raise ValueError(f"ratio {ratio:g} is the fraction of neurons removed: at least 0, less than 1")
        return value if isinstance(value, dict) else distinct(value)
