"""A recipe: one experiment as typed, frozen data, read from YAML, with `key=value` overrides."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator, model_validator

from pathprune.data.class_names import ClassKey
from pathprune.data.config import DataConfig
from pathprune.evaluation.config import EvaluateConfig
from pathprune.inspection.config import InspectConfig
from pathprune.mining.config import MineConfig
from pathprune.models.config import ModelConfig
from pathprune.pruning import parse_compensation
from pathprune.pruning.config import PruneConfig
from pathprune.recovery.config import RecoverConfig, TrainConfig
from pathprune.scoring import parse_criterion
from pathprune.scoring.config import ScoreConfig
from pathprune.section import AsTuple, Section, as_word, distinct


class RecipeError(ValueError):
    """The recipe cannot be used; the message lists every problem, one a line."""


class CompareConfig(Section):
    """What `pathprune compare` does beyond a run: the same for further seeds."""

    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AsTuple] = Field(
        (), description="further seeds: mining and calibration images and chance differ, evaluation images do not"
    )

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return distinct(value)


class Recipe(Section):
    """One experiment. Every field has a default, so that a recipe says only what it is about."""

    name: str = Field("quickstart", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run folder")
    output: str | None = Field(None, description="run folder; null: runs/<name>")
    seed: int = Field(0, ge=0, description="of every random choice")
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(as_word)] = Field(
        "no", description="Accelerate's, for training and evaluation"
    )
    classes: Annotated[tuple[ClassKey, ...], AsTuple] = Field(
        (), description="classes that the model is for, by name or index: mine, score, fit and evaluate on these only"
    )
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    mine: MineConfig = MineConfig()
    score: ScoreConfig = ScoreConfig()
    prune: PruneConfig = PruneConfig()
    compensation: Annotated[tuple[Any, ...], AsTuple] = Field(
        ("none", "mean"), min_length=1, description="what is done to the kept weights after pruning"
    )
    recover: RecoverConfig | None = Field(None, description="train what was pruned; null: do not")
    train: TrainConfig = TrainConfig()
    trackers: Annotated[tuple[str, ...], AsTuple] = Field(
        (), description="Accelerate's, for trainings: tensorboard, wandb …"
    )
    evaluate: EvaluateConfig = EvaluateConfig()
    inspect: InspectConfig = InspectConfig()
    compare: CompareConfig = CompareConfig()
    report: bool = Field(True, description="write report.html, figures/ and tables/")

    @field_validator("compensation")
    @classmethod
    def _known(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        for compensation in value:
            parse_compensation(compensation)
        return distinct(value)

    @field_validator("classes")
    @classmethod
    def _several(cls, value: tuple[ClassKey, ...]) -> tuple[ClassKey, ...]:
        return distinct(value)

    @model_validator(mode="after")
    def _sliced_to_classes(self) -> Self:
        if self.model.slice_head and len(self.classes) < 2:
            raise ValueError("model.slice_head keeps the head's rows of `classes`; name two of them at least")
        if self.model.slice_head and self.mine.objective is not None and self.mine.objective.name == "zero-shot":
            raise ValueError(
                "model.slice_head slices a classifier; leave classes out of the zero-shot head's file instead"
            )
        return self

    @model_validator(mode="after")
    def _validated_drop(self) -> Self:
        if self.prune.max_drop is not None and self.data.splits.validation is None:
            raise ValueError("prune.max_drop is found on images of its own; name their split in data.splits.validation")
        return self

    @model_validator(mode="after")
    def _recovers_what_is_there(self) -> Self:
        if self.recover is None:
            return self
        steps = {
            "criteria": [parse_criterion(spec).name for spec in self.score.criteria],
            "compensations": [parse_compensation(spec).name for spec in self.compensation],
        }
        for key, present in steps.items():
            for name in getattr(self.recover, key):
                if name not in ("all", *present):
                    raise ValueError(f"recover.{key}: '{name}' is not among those of the recipe: {', '.join(present)}")
        return self

    @property
    def folder(self) -> Path:
        """Where the run's results go."""
        return Path(self.output) if self.output else Path("runs") / self.name

    @property
    def evaluation_seed(self) -> int:
        """The seed by which evaluation images are sampled."""
        return self.seed if self.evaluate.seed is None else self.evaluate.seed

    def to_yaml(self) -> str:
        """The whole recipe, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def shipped_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with pathprune."""
    package = Path(__file__).parent
    folder = package / "_recipes" if (package / "_recipes").is_dir() else package.parent / "recipes"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def recipe_file(path: str | Path) -> Path:
    """The file that `path` names: itself, or a shipped recipe. Raises `RecipeError` if there is none."""
    if Path(path).is_file():
        return Path(path)
    shipped = shipped_recipes()
    if str(path) in shipped:
        return shipped[str(path)]
    problem = "is a folder" if Path(path).is_dir() else "does not exist"
    raise RecipeError(f"recipe '{path}' {problem}; give a YAML file or one of {', '.join(shipped)}")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file, or by a shipped recipe's name, and apply `section.key=value` overrides.

    Raises `RecipeError` that lists every unknown key and bad value at once, by its dotted path.
    """
    file = recipe_file(path)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{file} holds {type(content).__name__}, not a mapping of recipe keys")
    content.setdefault("name", file.stem)
    for override in overrides:
        _override(content, override)
    return parse_recipe(content, source=str(file))


def parse_recipe(content: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
    """Validate plain data as a recipe; raises `RecipeError` as `load_recipe` does."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = [_problem(detail) for detail in error.errors(include_url=False)]
        raise RecipeError(f"{source}: " + "\n".join(problems)) from error


def _override(content: dict[str, Any], override: str) -> None:
    """Set (in place) one `section.key=value`; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override '{override}' is not of the form section.key=value")
    *sections, last = key.split(".")
    target = content
    for section in sections:
        if target.get(section) is None:
            target[section] = {}
        if not isinstance(target[section], dict):
            raise RecipeError(f"override '{override}': '{section}' is a value, not a section")
        target = target[section]
    try:
        target[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override '{override}': '{text}' is not valid YAML") from error


def _problem(detail: Any) -> str:
    path = [str(part) for part in detail["loc"]]
    where = ".".join(path)
    if detail["type"] == "extra_forbidden":
        allowed = _fields_at(path[:-1])
        close = difflib.get_close_matches(path[-1], allowed, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"unknown key '{where}'{hint} (allowed: {', '.join(allowed)})"
    if detail["type"] == "value_error":  # our own, which say what was got
        return f"{where}: {detail['ctx']['error']}".removeprefix(": ")
    message = detail["msg"]
    return f"{where}: {message[0].lower()}{message[1:]} (got {detail['input']!r})"


def _fields_at(path: Iterable[str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        nested = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)
