"""Top level of a recipe. Each section is defined in the package that it configures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, field_validator, model_validator

from pathprune.data.class_names import ClassKey
from pathprune.data.config import DataConfig
from pathprune.evaluation.config import EvaluateConfig
from pathprune.inspection.config import InspectConfig
from pathprune.mining.config import MineConfig
from pathprune.models.config import ModelConfig
from pathprune.pruning.compensation import CompensationSpec, parse_compensation
from pathprune.pruning.config import PruneConfig
from pathprune.recipe.error import RecipeError
from pathprune.recovery.config import RecoverConfig, TrainConfig
from pathprune.scoring.config import ScoreConfig
from pathprune.scoring.criteria import parse_criterion
from pathprune.section import AsTuple, Section, as_word, refuse_duplicates

_PLACEHOLDER = "path/to/"


class CompareConfig(Section):
    """Extra settings of `pathprune compare`."""

    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AsTuple] = Field(
        (),
        description="Further seeds to repeat the comparison with. They change the mining and calibration images and "
        "the random choices, not the evaluation images.",
    )

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return refuse_duplicates(value)


class Recipe(Section):
    """One experiment. Every key has a default, so that a recipe contains only what differs from it."""

    name: str = Field(
        "quickstart",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the experiment and of its run folder: letters, digits, '.', '_' and '-'. Default: the "
        "name of the recipe file.",
    )
    output: str | None = Field(None, description="Run folder. null: runs/<name>.")
    seed: int = Field(0, ge=0, description="Seed of sampling, random criteria and training.")
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(as_word)] = Field(
        "no", description="Mixed precision of training and evaluation, by Accelerate. Of mining: see mine.precision."
    )
    classes: Annotated[tuple[ClassKey, ...], AsTuple] = Field(
        (),
        description="Classes that the pruned model is for, by name or index: mining, scoring, fitting and evaluation "
        "use the images of these classes only. []: all classes.",
    )
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    mine: MineConfig = MineConfig()
    score: ScoreConfig = ScoreConfig()
    prune: PruneConfig = PruneConfig()
    compensation: Annotated[tuple[CompensationSpec, ...], AsTuple] = Field(
        ("none", "mean"),
        min_length=1,
        description="Compensations for the removed neurons: changes of the kept weights, without training. A name, or "
        "a mapping with options such as {name: least-squares, ridge: 0.01}.",
    )
    recover: RecoverConfig | None = Field(
        None, description="Training of the pruned models. null: none; {}: with the defaults below."
    )
    train: TrainConfig = TrainConfig()
    trackers: Annotated[tuple[str, ...], AsTuple] = Field(
        (),
        description="Experiment trackers of trainings, by Accelerate: tensorboard (writes to logs/ in the run folder), "
        "wandb, mlflow, … Each needs its package.",
    )
    evaluate: EvaluateConfig = EvaluateConfig()
    inspect: InspectConfig = InspectConfig()
    compare: CompareConfig = CompareConfig()
    report: bool = Field(
        True, description="Write report.html, figures/ and tables/ to the run folder after a run or a comparison."
    )

    @field_validator("compensation")
    @classmethod
    def _check_compensation(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        for compensation in value:
            parse_compensation(compensation)
        return refuse_duplicates(value)

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, value: tuple[ClassKey, ...]) -> tuple[ClassKey, ...]:
        return refuse_duplicates(value)

    @model_validator(mode="after")
    def _check_slice_head(self) -> Self:
        if self.model.slice_head and len(self.classes) < 2:
            raise ValueError("model.slice_head keeps the rows of `classes` in the head; name at least two classes")
        if self.model.slice_head and self.mine.objective is not None and self.mine.objective.name == "zero-shot":
            raise ValueError(
                "model.slice_head slices a classifier; for a zero-shot head, remove classes from the head's file "
                "instead"
            )
        return self

    @model_validator(mode="after")
    def _check_max_drop(self) -> Self:
        if self.prune.max_drop is not None and self.data.splits.validation is None:
            raise ValueError("prune.max_drop needs validation images; set data.splits.validation")
        return self

    @model_validator(mode="after")
    def _check_recover(self) -> Self:
        if self.recover is None:
            return self
        names = {
            "criteria": [parse_criterion(spec).name for spec in self.score.criteria],
            "compensations": [parse_compensation(spec).name for spec in self.compensation],
        }
        for key, present in names.items():
            for name in getattr(self.recover, key):
                if name not in ("all", *present):
                    raise ValueError(
                        f"recover.{key}: '{name}' is not in the recipe; choose from all, {', '.join(present)}"
                    )
        return self

    def check_paths(self) -> None:
        """Raise `RecipeError` for a placeholder that was left in place, and for a local path that does not exist.

        Reads no file, so that a command can refuse a mistake before it waits for anything.
        """
        self.check_placeholders()
        teachers = [section.distill.teacher for section in (self.train, self.recover) if section and section.distill]
        try:
            self.model.check_paths()
            self.data.check_paths()
            for teacher in filter(None, teachers):
                ModelConfig(name=teacher).check_paths()
        except ValueError as error:
            raise RecipeError(str(error)) from error
        head = self.mine.objective.head if self.mine.objective else None
        if head is not None and not Path(head).expanduser().is_file():
            raise RecipeError(f"mine.objective.head: file {head} does not exist")

    def check_placeholders(self) -> None:
        """Raise `RecipeError` if the model or the data is still the placeholder of a shipped recipe."""
        for key, value in {"model.name": self.model.name, "data.source": self.data.source}.items():
            if value.startswith(_PLACEHOLDER) and not Path(value).exists():
                raise RecipeError(f"{key} is still the placeholder '{value}'; give your own with {key}=…")

    @property
    def folder(self) -> Path:
        """Run folder."""
        return Path(self.output) if self.output else Path("runs") / self.name

    @property
    def evaluation_seed(self) -> int:
        """Seed of the sample of evaluation images."""
        return self.seed if self.evaluate.seed is None else self.evaluate.seed

    def to_yaml(self) -> str:
        """Return the recipe as YAML, with all defaults."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
