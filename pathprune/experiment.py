"""A recipe, opened: its model, its images and its run folder, and the stages that turn one into the next.

Each stage stores what it makes under the key of its inputs, so that a second run computes only what is missing. Under a
launcher with several processes the main process computes and writes, the others read; mining and evaluation are shared
by all.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pathprune.data import (
    LabelledImages,
    check_labels,
    evaluation_transform,
    make_loader,
    open_source,
    read_split,
    refuse_overlap,
    sample_balanced,
)
from pathprune.evaluation import Evaluation, evaluate_model
from pathprune.mining import ClassStats, MinedPaths, ShardFolder, locate_paths, mine_split, save_paths
from pathprune.models.adapt import adapt
from pathprune.models.checkpoint import save_pruned
from pathprune.models.loading import LoadedModel, load_model
from pathprune.models.seam import AdaptedModel
from pathprune.progress import TrackedBatches, image_progress
from pathprune.pruning import PrunePlan, make_plan, prune
from pathprune.pruning.compensation import Compensation, parse_compensation
from pathprune.recipe import Recipe, RecipeError
from pathprune.runs import RunFolder, key_of
from pathprune.scoring import ActivationStatistics, Criterion, Scores, ScoringContext, collect_statistics, score
from pathprune.scoring.criteria import Tokens, parse_criterion

log = logging.getLogger(__name__)

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")  # timm's
Use = Literal["mine", "calibrate", "train", "evaluate"]

ARTIFACT_VERSION = 1  # raised when artifacts are computed otherwise, so that those of older versions are not reused


@dataclass(frozen=True)
class Variant:
    """One pruned model of the comparison: which neurons go, how many, and what is done to the others."""

    criterion: Criterion
    compensation: Compensation
    budget: float  # fraction of all MLP neurons to remove

    @property
    def id(self) -> str:
        """Unique within a recipe; also a file name."""
        return f"{label(self.criterion)}--{label(self.compensation)}--{self.budget}"


def label(step: Criterion | Compensation) -> str:
    """The registered name, with a short hash of the options where they are not the defaults: fit for a file's name."""
    options = step.model_dump(mode="json", exclude_defaults=True)
    return f"{step.name}-{key_of(**options)[:8]}" if options else step.name


class Experiment:
    """Stages of one recipe in their run folder."""

    def __init__(self, recipe: Recipe, *, overwrite: bool = False) -> None:
        self.recipe = recipe
        self.accelerator = _accelerator(recipe)
        set_seed(recipe.seed)  # a model without weights is the same random one in every run and process
        self.loaded: LoadedModel = load_model(
            recipe.model.name,
            checkpoint=recipe.model.checkpoint,
            pretrained=recipe.model.pretrained,
            num_classes=recipe.model.num_classes,
            image_size=recipe.model.image_size,
            model_args=recipe.model.args,
        )
        self.model: nn.Module = self.loaded.model.to(self.accelerator.device)
        self.adapted: AdaptedModel = adapt(self.model)
        self.data_config = _overlaid(self.loaded.data_config, recipe.model.data_config)
        if self.data_config["input_size"][0] != 3:
            raise ValueError(f"the model takes {self.data_config['input_size'][0]} channels; only RGB images are read")
        self._source = open_source(recipe.data.source, config=recipe.data.config, revision=recipe.data.revision)
        self._images: dict[Use, LabelledImages] = {}
        self._hashes: dict[Use, list[bytes]] = {}
        self._mined: dict[Tokens, ClassStats] = {}
        self._statistics: ActivationStatistics | None = None
        self.folder = RunFolder(recipe.folder, main=self.accelerator.is_main_process)
        with self.main_first():
            self.folder.claim(recipe, overwrite=overwrite)

    def main_first(self) -> AbstractContextManager[None]:
        """Let the main process through first; the others then find what it wrote."""
        return self.accelerator.main_process_first()  # type: ignore[no-any-return]

    # --- images

    def images(self, use: Use) -> LabelledImages:
        """The images of one use, sampled as the recipe says, without those that cannot be read.

        Training images are only decoded when they are trained on; the trainer skips what it cannot read.
        """
        if use not in self._images:
            recipe = self.recipe
            number = {
                "mine": recipe.mine.num_images,
                "calibrate": recipe.score.num_images,
                "evaluate": recipe.evaluate.num_images,
                "train": None,
            }[use]
            images = read_split(
                self._source,
                getattr(recipe.data.splits, use),
                image_column=recipe.data.image_column,
                label_column=recipe.data.label_column,
            )
            images = self._named_alike(images)
            check_labels(images, num_classes=self.adapted.num_classes)
            per_class = recipe.mine.images_per_class if use == "mine" else None
            images = sample_balanced(images, num_images=number, images_per_class=per_class, seed=recipe.seed)
            if use == "train":
                self._hashes[use] = images.content_hashes()
            else:
                images, self._hashes[use] = images.readable(
                    max_unreadable=recipe.data.max_unreadable, threads=recipe.data.num_workers
                )
            self._images[use] = images.with_transform(evaluation_transform(self.data_config))
        return self._images[use]

    def _named_alike(self, images: LabelledImages) -> LabelledImages:
        """The images with their classes numbered as the model's are, where both have names that tell."""
        known = self.loaded.class_names or next((other.class_names for other in self._images.values()), None)
        if known is None or images.class_names == known:
            return images
        if set(images.class_names) <= set(known):
            log.info("split '%s': classes are numbered by their names, as the model's are", images.split)
            return images.renamed(known)
        if self.loaded.class_names is None:
            raise ValueError(
                f"split '{images.split}' has the classes {', '.join(images.class_names[:5])} …, other splits have "
                f"{', '.join(known[:5])} …; store labels as numbers or datasets.ClassLabel with the same names"
            )
        return images  # names of another kind, such as WordNet ids beside words: numbers must do

    def check_disjoint(self, *uses: Use) -> None:
        """Refuse data in which an evaluation image is also used for `uses`."""
        for use in ("evaluate", *uses):
            self.images(use)
        refuse_overlap(self._hashes["evaluate"], {use: self._hashes[use] for use in uses})

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the model's classes: the checkpoint's, else the data set's, else numbers."""
        num_classes = self.adapted.num_classes
        for names in (self.loaded.class_names, self.images("evaluate").class_names):
            if names is not None and len(names) == num_classes:
                return tuple(names)
        return tuple(str(index) for index in range(num_classes))

    def batches(self, use: Use, *, batch_size: int) -> DataLoader[tuple[Tensor, Tensor]]:
        """Re-iterable batches in a fixed order."""
        return make_loader(self.images(use), batch_size=batch_size, num_workers=self.recipe.data.num_workers)

    def calibration(self, description: str) -> TrackedBatches:
        """Batches of calibration images that show a progress bar."""
        batches = self.batches("calibrate", batch_size=self.recipe.score.batch_size)
        return TrackedBatches(batches, description, len(self.images("calibrate")))

    # --- keys

    @cached_property
    def model_key(self) -> str:
        """Key of the model as it meets images: weights, architecture and transform."""
        digest = hashlib.blake2b(digest_size=12)
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        architecture = self.loaded.architecture
        return key_of(
            weights=digest.hexdigest(),
            architecture=[architecture.name, dict(architecture.args)],
            transform=self.data_config,
            artifacts=ARTIFACT_VERSION,
        )

    def images_key(self, use: Use) -> str:
        """Key of the images of one use, their labels and their order."""
        images = self.images(use)
        content = b"".join(self._hashes[use]) + images.labels.tobytes()
        return hashlib.blake2b(content, digest_size=12).hexdigest()

    # --- stages

    def mined(self, tokens: Tokens) -> ClassStats:
        """Class statistics of the paths located on the mining images; the paths go beside them.

        All processes take part. What they have finished is in `mining/` until all is.
        """
        if tokens not in self._mined:
            name, key = f"mined/{tokens}", self._mining_key(tokens)

            def load(folder: Path) -> ClassStats:
                return ClassStats.load(folder / "stats.safetensors")

            found = self.folder.current(name, key=key, load=load)
            self.accelerator.wait_for_everyone()  # nobody writes before all have looked
            if found is None:
                shards = self._shards(tokens, key)
                if self.folder.main:
                    shards.prepare()
                self.accelerator.wait_for_everyone()
                num_shards = self._mine(tokens, shards)
                self.accelerator.wait_for_everyone()

                def save(stats: ClassStats, folder: Path) -> None:
                    folder.mkdir()
                    stats.save(folder / "stats.safetensors")
                    save_paths(shards.paths(num_shards), folder / "paths.parquet")

                with self.main_first():
                    stats = self.folder.artifact(
                        name, key=key, make=lambda: shards.sum(num_shards), save=save, load=load
                    )
                found = (stats,)
                if self.folder.main:
                    shards.remove()
            (self._mined[tokens],) = found
        return self._mined[tokens]

    def _mining_key(self, tokens: Tokens) -> str:
        settings = self.recipe.mine.model_dump(mode="json")
        return key_of(model=self.model_key, images=self.images_key("mine"), tokens=tokens, settings=settings)

    def _shards(self, tokens: Tokens, key: str) -> ShardFolder:
        settings = self.recipe.mine.model_dump(mode="json", exclude_none=True)
        return ShardFolder(
            self.folder.path / "mining" / tokens,
            key=key,
            widths={site.name: site.width for site in self.adapted.sites},
            class_names=self.class_names,
            settings={**settings, "tokens": tokens},
        )

    def _mine(self, tokens: Tokens, shards: ShardFolder) -> int:
        """Mine this process's share; returns the number of shards of all processes."""
        config, images = self.recipe.mine, self.images("mine")

        def locate(batch: Tensor, labels: Tensor) -> MinedPaths:
            return locate_paths(
                self.adapted,
                batch,
                labels if config.targets == "label" else None,
                method=config.method,
                rule=config.rule,
                nodes=config.nodes,
                top_k=config.top_k,
                tokens=tokens,
            )

        with image_progress(disable=not self.accelerator.is_main_process) as progress:
            task = progress.add_task(f"mining paths ({tokens} tokens)", total=len(images), note="")
            return mine_split(
                self.adapted,
                images,
                shards,
                locate=locate,
                shard_size=config.shard_size,
                batch_size=config.batch_size,
                only_correct=config.only_correct,
                process=self.accelerator.process_index,
                num_processes=self.accelerator.num_processes,
                num_workers=self.recipe.data.num_workers,
                on_progress=lambda done: progress.update(task, completed=min(done, len(images))),
            )

    def statistics(self) -> ActivationStatistics:
        """Activation statistics of the dense model on the calibration images; with covariances if a step needs any."""
        if self._statistics is None:
            config = self.recipe.score
            covariance = any(parse_criterion(spec).needs_covariance for spec in config.criteria) or any(
                parse_compensation(spec).needs_covariance for spec in self.recipe.compensation
            )

            def collect() -> ActivationStatistics:
                return collect_statistics(self.adapted, self.calibration("calibrating"), covariance=covariance)

            with self.main_first():
                self._statistics = self.folder.artifact(
                    "statistics.safetensors",
                    key=key_of(model=self.model_key, images=self.images_key("calibrate"), covariance=covariance),
                    make=collect,
                    save=lambda statistics, file: statistics.save(file),
                    load=ActivationStatistics.load,
                )
        return self._statistics

    def scores(self, criterion: Criterion) -> Scores:
        """Score every neuron by one criterion."""
        tokens = criterion.needs_mining
        key = key_of(
            model=self.model_key,
            criterion=criterion.spec(),
            mining=self._mining_key(tokens) if tokens else None,
            calibration=self.images_key("calibrate"),
            seed=self.recipe.seed,
        )

        def compute() -> Scores:
            return score(
                ScoringContext(
                    adapted=self.adapted,
                    batches=self.calibration(f"scoring by {criterion.name}"),
                    mined={tokens: self.mined(tokens)} if tokens else {},
                    statistics=self.statistics() if criterion.needs_statistics else None,
                    seed=self.recipe.seed,
                ),
                criterion=criterion,
            )

        if tokens:  # a stage of its own, ahead of the main process's turn in this one
            self.mined(tokens)
        if criterion.needs_statistics:
            self.statistics()
        with self.main_first():
            return self.folder.artifact(
                f"scores/{label(criterion)}.safetensors", key=key, make=compute, save=save_file, load=load_file
            )

    def plan(self, criterion: Criterion, budget: float) -> PrunePlan:
        """Which neurons this criterion keeps at this budget."""
        config = self.recipe.prune
        return make_plan(
            self.scores(criterion),
            sites=self.adapted.sites,
            ratio=budget,
            scope=config.scope,
            normalize=config.normalize,
            round_to=config.round_to,
            min_width=config.min_width,
            block_ratios=config.block_ratios,
            exclude_blocks=config.exclude_blocks,
        )

    def pruned(self, variant: Variant, plan: PrunePlan) -> AdaptedModel:
        """A pruned and compensated copy of the model."""
        compensation = variant.compensation
        return prune(
            self.adapted,
            plan=plan,
            compensation=compensation,
            statistics=self.statistics() if compensation.needs_statistics else None,
            batches=self.calibration(f"fitting {variant.id}") if compensation.needs_batches else None,
        )

    def evaluation(
        self, name: str, model: Callable[[], nn.Module], *, reference: Evaluation | None = None, key: str = ""
    ) -> Evaluation:
        """Outcomes of `model()` on the evaluation images; shared by all processes."""
        config = self.recipe.evaluate
        artifact = f"evaluations/{name}.safetensors"
        full_key = self.evaluation_key(key)
        current = self.folder.is_current(artifact, key=full_key)
        self.accelerator.wait_for_everyone()
        if current:
            return Evaluation.load(self.folder.path / artifact)
        images = self.images("evaluate")
        loader = self.batches("evaluate", batch_size=config.batch_size)
        with image_progress(disable=not self.accelerator.is_main_process) as progress:
            task = progress.add_task(f"evaluating {name}", total=len(images), note="")
            made = evaluate_model(
                model(),
                loader,
                accelerator=self.accelerator,
                reference=reference,
                class_names=self.class_names,
                description=name,
                on_progress=lambda done: progress.update(task, completed=done),
            )
        return self.folder.artifact(
            artifact,
            key=full_key,
            make=lambda: made,
            save=lambda evaluation, file: evaluation.save(file),
            load=Evaluation.load,
        )

    def evaluation_key(self, key: str) -> str:
        """Key of an evaluation: of the pruned model, the images and the precision."""
        return key_of(
            model=self.model_key,
            images=self.images_key("evaluate"),
            pruned=key,
            precision=self.recipe.mixed_precision,
        )

    def variant_key(self, variant: Variant, plan: PrunePlan) -> str:
        """Key of a pruned model: the plan and, where compensation learns from images, these."""
        compensation = variant.compensation
        needs = compensation.needs_statistics or compensation.needs_batches
        return key_of(
            plan=plan.to_dict(),
            compensation=compensation.spec(),
            calibration=self.images_key("calibrate") if needs else None,
        )

    def save_checkpoint(self, name: str, model: Callable[[], nn.Module], *, key: str, **about: Any) -> Path:
        """Save `model()` as a checkpoint folder, unless it is there already; returns its path."""

        def save(_: None, folder: Path) -> None:
            save_pruned(
                model(),
                folder,
                architecture=self.loaded.architecture,
                data_config=self.data_config,
                class_names=self.class_names,
                **about,
            )

        if self.folder.main:
            self.folder.artifact(name, key=key, make=lambda: None, save=save, load=lambda _: None)
        self.accelerator.wait_for_everyone()
        return self.folder.path / name

    def latency_images(self) -> Tensor:
        """One batch of noise at the model's input size: latency does not depend on the content."""
        channels, height, width = self.data_config["input_size"]
        generator = torch.Generator().manual_seed(self.recipe.seed)
        size = (self.recipe.evaluate.latency_batch_size, channels, height, width)
        return torch.randn(size, generator=generator).to(self.accelerator.device)


def _accelerator(recipe: Recipe) -> Accelerator:
    """One for everything the recipe does, since Accelerate keeps one precision per process."""
    AcceleratorState._reset_state()  # of an earlier recipe in this process, which may have had another precision
    return Accelerator(
        mixed_precision=recipe.mixed_precision,
        gradient_accumulation_steps=recipe.train.accumulate_steps,
        # the order of an epoch follows from the seed and the epoch, whatever was run before
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=recipe.seed),
        # the others wait while the main process mines
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))],
    )


def _overlaid(data_config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The model's data config with the recipe's changes; unknown keys are refused."""
    unknown = sorted(changes.keys() - data_config.keys())
    if unknown:
        raise RecipeError(f"unknown key 'model.data_config.{unknown[0]}' (allowed: {', '.join(data_config)})")
    overlaid = {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
    for key in ("input_size", "mean", "std"):
        if key in overlaid and not (isinstance(overlaid[key], tuple) and len(overlaid[key]) == 3):
            raise RecipeError(f"model.data_config.{key} is {changes[key]!r}; it takes three numbers")
    if overlaid.get("interpolation", "random") not in INTERPOLATIONS:
        raise RecipeError(
            f"model.data_config.interpolation is '{changes['interpolation']}'; choose from {', '.join(INTERPOLATIONS)}"
        )
    return {**data_config, **overlaid}
