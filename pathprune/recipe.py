"""A recipe: one experiment as typed, frozen data, read from YAML, with `key=value` overrides."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from pathprune.class_names import ClassKey
from pathprune.inspection.config import InspectConfig
from pathprune.mining import ObjectiveConfig
from pathprune.pruning import parse_compensation
from pathprune.recovery.config import RecoverConfig, TrainConfig
from pathprune.scoring import get_criterion, parse_criterion

# of timm.data.create_transform
_DATA_CONFIG = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")


class RecipeError(ValueError):
    """The recipe cannot be used; the message lists every problem, one a line."""


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _as_list_or_none(value: Any) -> Any:
    return None if value is None else _as_list(value)


def _as_word(value: Any) -> Any:
    """YAML reads a bare `no` as False."""
    return "no" if value is False else value


def _number_or_auto(value: Any) -> Any:
    if value != "auto" and not (type(value) is int and value >= 1):
        raise ValueError(f"{value!r} is neither a number of at least 1 nor auto")
    return value


def _number_or_auto_or_none(value: Any) -> Any:
    return None if value is None else _number_or_auto(value)


NumberOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = [value for place, value in enumerate(values) if value in values[:place]]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is there twice; each makes a variant of its own")
    return values


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Section):
    """Which model, and where its weights come from."""

    name: str = Field("demo", description="timm name, hf-hub:NAME, a checkpoint folder, or demo")
    checkpoint: str | None = Field(None, description="weights file (.safetensors, .pth, .pt); null: those of the name")
    pretrained: bool = Field(True, description="fetch pretrained weights where no checkpoint is given")
    num_classes: int | None = Field(None, ge=0, description="size of the head; 0: none; null: as the checkpoint has it")
    image_size: int | None = Field(None, ge=1, description="input size in pixels; null: the model's own")
    slice_head: bool = Field(False, description="with `classes`: leave the other classes out of the head")
    args: dict[str, Any] = Field(default_factory=dict, description="further arguments of timm.create_model")
    data_config: dict[str, Any] = Field(
        default_factory=dict, description="what the checkpoint does not say of its images: mean, std, interpolation …"
    )

    @field_validator("data_config")
    @classmethod
    def _of_timm(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, setting in value.items():
            if key not in _DATA_CONFIG:
                raise ValueError(f"unknown key '{key}'; choose from {', '.join(_DATA_CONFIG)}")
            if key in ("input_size", "mean", "std") and not (isinstance(setting, list | tuple) and len(setting) == 3):
                raise ValueError(f"{key} is {setting!r}; it takes three numbers")
            if key == "interpolation" and setting not in _INTERPOLATIONS:
                raise ValueError(f"interpolation is '{setting}'; choose from {', '.join(_INTERPOLATIONS)}")
        return {key: tuple(setting) if isinstance(setting, list) else setting for key, setting in value.items()}


class SplitsConfig(_Section):
    """Which split each use reads, as in `datasets`: train, train[:1000], test[50%:]."""

    mine: str = "train"
    calibrate: str = "train"
    train: str = "train"
    validation: str | None = None
    evaluate: str = "test"


class DataConfig(_Section):
    """Which images."""

    source: str = Field("demo", description="parquet or image folder, file, hub name, or demo")
    config: str | None = Field(None, description="configuration of a hub data set")
    revision: str | None = Field(None, description="revision of a hub data set")
    image_column: str | None = Field(None, description="null: found by its usual names")
    label_column: str | None = Field(None, description="null: found by its usual names")
    splits: SplitsConfig = SplitsConfig()
    max_unreadable: float = Field(0.01, ge=0, le=1, description="share of images that may be skipped as unreadable")
    num_workers: int = Field(0, ge=0, description="processes that decode images")


class MineConfig(_Section):
    """How neuron paths are located (arXiv 2503.09046)."""

    num_images: int | None = Field(200, ge=1, description="mined images, spread evenly over classes; null: all")
    images_per_class: int | None = Field(None, ge=1, description="up to so many of every class instead of num_images")
    classes: Annotated[tuple[ClassKey, ...] | None, BeforeValidator(_as_list_or_none)] = Field(
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
    precision: Annotated[Literal["no", "bf16"], BeforeValidator(_as_word)] = Field(
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


class ScoreConfig(_Section):
    """Which criteria rank the neurons, and on how many images."""

    criteria: Annotated[tuple[Any, ...], BeforeValidator(_as_list)] = Field(
        ("path", "path-class", "magnitude-l2", "random"), min_length=1, description="names, or {name: …, option: …}"
    )
    num_images: int | None = Field(512, ge=1, description="calibration images for statistics and gradients; null: all")
    batch_size: int = Field(64, ge=1, description="calibration images per batch")

    @field_validator("criteria")
    @classmethod
    def _known(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        for criterion in value:
            parse_criterion(criterion)
        return _distinct(value)


class PruneConfig(_Section):
    """How many neurons go, and from where. Ratios are the fraction *removed*."""

    ratio: Annotated[tuple[float, ...], BeforeValidator(_as_list)] = Field(
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
    exclude_blocks: Annotated[tuple[int, ...], BeforeValidator(_as_list)] = Field(
        (), description="blocks that keep every neuron"
    )
    save: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
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
        return value if isinstance(value, dict) else _distinct(value)


class EvaluateConfig(_Section):
    """What is measured."""

    num_images: int | None = Field(None, ge=1, description="evaluation images; null: the whole split")
    batch_size: int = Field(128, ge=1, description="images per batch and process")
    seed: int | None = Field(None, ge=0, description="of the sampled evaluation images; null: the recipe's")
    latency: bool = Field(True, description="time dense and pruned models on this device")
    latency_batch_size: int = Field(16, ge=1, description="images per timed forward pass")
    latency_repeats: int = Field(20, ge=1, description="timed passes per model, interleaved")


class CompareConfig(_Section):
    """What `pathprune compare` does beyond a run: the same for further seeds."""

    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_as_list)] = Field(
        (), description="further seeds: mining and calibration images and chance differ, evaluation images do not"
    )

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct(value)


class Recipe(_Section):
    """One experiment. Every field has a default, so that a recipe says only what it is about."""

    name: str = Field("quickstart", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run folder")
    output: str | None = Field(None, description="run folder; null: runs/<name>")
    seed: int = Field(0, ge=0, description="of every random choice")
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(_as_word)] = Field(
        "no", description="Accelerate's, for training and evaluation"
    )
    classes: Annotated[tuple[ClassKey, ...], BeforeValidator(_as_list)] = Field(
        (), description="classes that the model is for, by name or index: mine, score, fit and evaluate on these only"
    )
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    mine: MineConfig = MineConfig()
    score: ScoreConfig = ScoreConfig()
    prune: PruneConfig = PruneConfig()
    compensation: Annotated[tuple[Any, ...], BeforeValidator(_as_list)] = Field(
        ("none", "mean"), min_length=1, description="what is done to the kept weights after pruning"
    )
    recover: RecoverConfig | None = Field(None, description="train what was pruned; null: do not")
    train: TrainConfig = TrainConfig()
    trackers: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
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
        return _distinct(value)

    @field_validator("classes")
    @classmethod
    def _several(cls, value: tuple[ClassKey, ...]) -> tuple[ClassKey, ...]:
        return _distinct(value)

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
