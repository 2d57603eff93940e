"""The `prune` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from pathprune.pruning.budget import ShareKind
from pathprune.pruning.rules import Normalize, Scope, WidthRules, check_ratio
from pathprune.scoring import get_criterion
from pathprune.section import AsTuple, Section, refuse_duplicates

# a JSON schema for editors; check_ratio() raises the errors
Ratio = Annotated[float, WithJsonSchema({"type": "number", "minimum": 0, "exclusiveMaximum": 1})]


def _allow_null(schema: dict[str, Any]) -> None:
    schema["anyOf"].append({"type": "null"})


class PruneConfig(Section):
    """Number of neurons to remove, and their distribution over the blocks."""

    ratio: Annotated[tuple[Ratio, ...], AsTuple] = Field(
        (0.5,),
        description="Fraction to remove of what `budget` names: a number, or a list for one pruned model per ratio. "
        "null: use max_drop.",
        json_schema_extra=_allow_null,
    )
    budget: ShareKind = Field(
        "neurons",
        description="Quantity that `ratio` is a fraction of: MLP neurons; parameters or MACs of the whole model; its "
        "latency, measured on this device.",
    )
    max_drop: float | None = Field(
        None,
        ge=0,
        lt=100,
        description="Loss of top-1 accuracy in points that is allowed on data.splits.validation. The smallest model "
        "within it is chosen, in place of a ratio. null: use ratio.",
    )
    scope: Scope = Field(
        "uniform",
        description="uniform: remove the same fraction of every block. global: remove the neurons with the lowest "
        "scores of all blocks.",
    )
    normalize: Normalize = Field(
        "none",
        description="Comparison of blocks with scope global. none: by score. mean: by score over the block's mean "
        "score. damage: choose the width of every block by the measured change of the output per MAC.",
    )
    round_to: int = Field(
        1, ge=1, description="Kept widths are multiples of this number. GPUs are slow at odd widths: use 8 to 64."
    )
    min_width: int = Field(1, ge=1, description="Neurons that every pruned block keeps at least.")
    block_ratios: dict[int, Ratio] = Field(
        default_factory=dict, description="Fraction to remove of single blocks: {block: ratio}."
    )
    exclude_blocks: Annotated[tuple[int, ...], AsTuple] = Field((), description="Blocks that keep every neuron.")
    save: Annotated[tuple[str, ...], AsTuple] = Field(
        ("path",),
        description="Criteria whose pruned checkpoints `pathprune run` saves; [all]: every criterion, []: none. "
        "`pathprune prune` saves all checkpoints.",
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
        return refuse_duplicates(value)

    @field_validator("block_ratios")
    @classmethod
    def _check_block_ratios(cls, value: dict[int, float]) -> dict[int, float]:
        for block, ratio in value.items():
            check_ratio(f"block_ratios[{block}]", ratio)
        return value
