"""The `prune` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from pathprune.pruning.budget import ShareKind
from pathprune.pruning.rules import Normalize, Scope, WidthRules, check_ratio
from pathprune.scoring import get_criterion
from pathprune.section import AsTuple, Section, distinct


class PruneConfig(Section):
    """Number of neurons to remove, and the blocks that lose them; ratios are the fraction *removed*."""

    ratio: Annotated[tuple[float, ...], AsTuple] = Field(
        (0.5,), description="fraction removed of what `budget` names: one number, or a list"
    )
    budget: ShareKind = Field(
        "neurons", description="what `ratio` is a fraction of: MLP neurons, or a cost of the whole model"
    )
    max_drop: float | None = Field(
        None, ge=0, lt=100, description="instead of a ratio: points of top-1 that may be lost on data.splits.validation"
    )
    scope: Scope = Field("uniform", description="uniform: the same share of every block; global: by score")
    normalize: Normalize = Field("none", description="how a global budget compares blocks")
    round_to: int = Field(1, ge=1, description="kept widths are multiples of this; 8 or 64 suit GPUs")
    min_width: int = Field(1, ge=1, description="neurons that every block keeps")
    block_ratios: dict[int, float] = Field(default_factory=dict, description="fraction removed of single blocks")
    exclude_blocks: Annotated[tuple[int, ...], AsTuple] = Field((), description="blocks that keep every neuron")
    save: Annotated[tuple[str, ...], AsTuple] = Field(
        ("path",), description="criteria whose pruned models are saved; all: every criterion"
    )

    @property
    def width_rules(self) -> WidthRules:
        """Return the rules for widths, without the budget."""
        return WidthRules(
            scope=self.scope,
            normalize=self.normalize,
            round_to=self.round_to,
            min_width=self.min_width,
            block_ratios=self.block_ratios,
            exclude_blocks=self.exclude_blocks,
        )

    @model_validator(mode="before")
    @classmethod
    def _drop_ratio(cls, values: Any) -> Any:
        """Drop the default ratio if `max_drop` is given; refuse both."""
        if not isinstance(values, dict) or values.get("max_drop") is None:
            return values
        if values.get("ratio"):
            raise ValueError("ratio and max_drop are both given; set one of them to null")
        return {**values, "ratio": ()}

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if not self.ratio and self.max_drop is None:
            raise ValueError("neither ratio nor max_drop is given; give one of them")
        if self.normalize == "damage" and self.scope != "global":
            raise ValueError(
                "normalize 'damage' chooses the width of each block, which scope 'uniform' does not allow; use scope "
                "'global'"
            )
        return self

    @field_validator("save")
    @classmethod
    def _check_criteria(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name != "all":
                get_criterion(name)
        return value

    @field_validator("ratio")
    @classmethod
    def _check_ratio(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for ratio in value:
            check_ratio("ratio", ratio)
        return distinct(value)

    @field_validator("block_ratios")
    @classmethod
    def _check_block_ratios(cls, value: dict[int, float]) -> dict[int, float]:
        for block, ratio in value.items():
            check_ratio(f"block_ratios[{block}]", ratio)
        return value
