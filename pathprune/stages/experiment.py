"""A recipe, opened: its model, its images and its run folder, and the stages that turn one into the next.

Each stage stores what it makes under the key of its inputs, so that a second run computes only what is missing. Under a
launcher with several processes the main process computes and writes, the others read; mining and evaluation are shared
by all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed
from safetensors.torch import load_file, save_file
from torch import nn

from pathprune.evaluation import Evaluation, MacCounter, evaluate_model
from pathprune.keys import key_of
from pathprune.mining import ClassStats, Tokens, ZeroShot, ZeroShotClassifier, resolve_objective
from pathprune.models.adapt import adapt
from pathprune.models.checkpoint import load_pruned, save_pruned
from pathprune.models.loading import LoadedModel, load_configured_model
from pathprune.models.pruned_config import VERSION
from pathprune.models.seam import AdaptedModel
from pathprune.models.slicing import slice_head
from pathprune.progress import image_progress
from pathprune.pruning import PrunePlan, prune
from pathprune.pruning.compensation import parse_compensation
from pathprune.recipe import Recipe
from pathprune.runs import RunFolder, read_json
from pathprune.scoring import ActivationStatistics, Criterion, Scores, ScoringContext, collect_statistics, score
from pathprune.scoring.criteria import parse_criterion
from pathprune.stages.images import Splits
from pathprune.stages.mining import Mining
from pathprune.stages.variants import Variant, label

ARTIFACT_VERSION = 1  # raised when artifacts are computed otherwise, so that those of older versions are not reused


class Experiment:
    """Stages of one recipe in their run folder."""

    def __init__(self, recipe: Recipe, *, overwrite: bool = False) -> None:
        self.recipe = recipe
        self.accelerator = _accelerator(recipe)
        set_seed(recipe.seed)  # a model without weights is the same random one in every run and process
        self.loaded: LoadedModel = load_configured_model(recipe.model)
        self.data_config = self.loaded.data_config
        if self.data_config["input_size"][0] != 3:
            raise ValueError(f"the model takes {self.data_config['input_size'][0]} channels; only RGB images are read")
        given, own_classes = recipe.mine.objective, adapt(self.loaded.model).num_classes
        self.objective = resolve_objective(own_classes, None if given is None else given.build())
        self.num_classes, class_names = own_classes or None, self.loaded.class_names
        self.head_key: dict[str, str] | None = None
        if given is not None and isinstance(self.objective, ZeroShot):
            self.head_key = given.spec()
            self.num_classes, class_names = len(self.objective.text_CK), self.objective.class_names
            with torch.no_grad():  # a head of another tower is noticed now
                self.classifier(self.loaded.model)(torch.zeros(1, *self.data_config["input_size"]))
        self.splits = Splits(
            recipe,
            num_classes=self.num_classes,
            model_names=class_names,
            data_config=self.data_config,
            choose=lambda images, class_names: self.mining.choose(images, class_names),
        )
        if recipe.model.slice_head:
            self.loaded, self.num_classes = slice_head(self.loaded, self.splits.classes), len(self.splits.classes)
        self._start(self.loaded.model, RunFolder(recipe.folder, main=self.accelerator.is_main_process))
        with self.main_first():
            self.folder.claim(recipe, overwrite=overwrite)

    def of_model(self, model: nn.Module, *, folder: str | Path) -> Experiment:
        """The same stages for another model of this architecture, such as a pruned one, in a folder of its own."""
        other = copy(self)
        for made in ("model_key", "mining"):
            other.__dict__.pop(made, None)
        other._start(model, RunFolder(Path(folder), main=self.folder.main))
        return other

    def _start(self, model: nn.Module, folder: RunFolder) -> None:
        """Take up a model and its run folder, with nothing computed yet."""
        self.model: nn.Module = model.to(self.accelerator.device)
        self.adapted: AdaptedModel = adapt(self.model, check=False)  # which the loaded model passed
        self.folder = folder
        self._statistics: ActivationStatistics | None = None

    def main_first(self) -> AbstractContextManager[None]:
        """Let the main process through first; the others then find what it wrote."""
        return self.accelerator.main_process_first()  # type: ignore[no-any-return]

    @cached_property
    def model_key(self) -> str:
        """Key of the model as it meets images: weights, architecture and transform."""
        architecture = self.loaded.architecture
        return key_of(
            weights=weights_key(self.model),
            architecture=[architecture.name, dict(architecture.args)],
            transform=self.data_config,
            artifacts=ARTIFACT_VERSION,
        )

    def classifier(self, model: nn.Module) -> nn.Module:
        """`model`, or what makes a classifier of it; raises `ValueError` where nothing does."""
        if isinstance(self.objective, ZeroShot):
            return ZeroShotClassifier(model, self.objective)
        if self.num_classes is None:
            raise ValueError(
                "the model has no classifier whose accuracy could be measured; mine and prune it, or give it classes "
                "by mine.objective={name: zero-shot, head: FILE}"
            )
        return model

    @cached_property
    def mining(self) -> Mining:
        """The mining stage, shared by all processes."""
        return Mining(
            self.recipe,
            self.adapted,
            objective=self.objective,
            num_classes=self.num_classes,
            model_key=self.model_key,
            splits=self.splits,
            folder=self.folder,
            accelerator=self.accelerator,
        )

    def mined(self, tokens: Tokens) -> ClassStats:
        """Class statistics of the paths located on the mining images."""
        return self.mining.stats(tokens)

    def statistics(self) -> ActivationStatistics:
        """Activation statistics of the dense model on the calibration images; with covariances if a step needs any."""
        if self._statistics is None:
            key = self.statistics_key()

            def collect() -> ActivationStatistics:
                batches = self.splits.calibration("calibrating")
                with self.counted("statistics", key=key):
                    return collect_statistics(self.adapted, batches, covariance=self._needs_covariance)

            with self.main_first():
                self._statistics = self.folder.artifact(
                    "statistics.safetensors",
                    key=key,
                    make=collect,
                    save=lambda statistics, file: statistics.save(file),
                    load=ActivationStatistics.load,
                )
        return self._statistics

    def statistics_key(self) -> str:
        """Key of the activation statistics."""
        return key_of(model=self.model_key, images=self.splits.key("calibrate"), covariance=self._needs_covariance)

    @property
    def _needs_covariance(self) -> bool:
        """Whether a step of the recipe needs covariances."""
        compensations = [parse_compensation(spec) for spec in self.recipe.compensation]
        return (
            any(parse_criterion(spec).needs_covariance for spec in self.recipe.score.criteria)
            or any(each.needs_covariance for each in compensations)
            # damage is measured with least squares in place of a compensation that fits block after block
            or (self.recipe.prune.normalize == "damage" and any(each.needs_batches for each in compensations))
        )

    def score_key(self, criterion: Criterion) -> str:
        """Key of the scores that a criterion gives; raises `ValueError` where it cannot give any."""
        if criterion.needs_labels and (self.adapted.num_classes == 0 or isinstance(self.objective, ZeroShot)):
            raise ValueError(f"criterion '{criterion.name}' needs the loss of a classifier, which the model is not")
        if criterion.needs_labels and not self.splits.images("calibrate").is_labelled:
            raise ValueError(f"criterion '{criterion.name}' needs labels, which the calibration images do not have")
        tokens = criterion.needs_mining
        return key_of(
            model=self.model_key,
            criterion=criterion.spec(),
            mining=self.mining.key(tokens) if tokens else None,
            calibration=self.splits.key("calibrate"),
            seed=self.recipe.seed,
        )

    def scores(self, criterion: Criterion) -> Scores:
        """Score every neuron by one criterion."""
        tokens, key = criterion.needs_mining, self.score_key(criterion)

        def compute() -> Scores:
            context = ScoringContext(
                adapted=self.adapted,
                batches=self.splits.calibration(f"scoring by {criterion.name}"),
                mined={tokens: self.mined(tokens)} if tokens else {},
                statistics=self.statistics() if criterion.needs_statistics else None,
                seed=self.recipe.seed,
                classes=None if self.recipe.model.slice_head else self.splits.classes or None,
            )
            with self.counted(f"scores/{label(criterion)}", key=key):
                return score(context, criterion=criterion)

        if tokens:  # a stage of its own, ahead of the main process's turn in this one
            self.mined(tokens)
        if criterion.needs_statistics:
            self.statistics()
        with self.main_first():
            return self.folder.artifact(
                f"scores/{label(criterion)}.safetensors", key=key, make=compute, save=save_file, load=load_file
            )

    def pruned(self, variant: Variant, plan: PrunePlan) -> AdaptedModel:
        """A pruned and compensated copy of the model: the saved one, where there is a checkpoint of it."""
        compensation, saved = variant.compensation, f"pruned/{variant.id}"
        if self.folder.is_current(saved, key=self.checkpoint_key(variant, plan)):
            return adapt(load_pruned(self.folder.path / saved).to(self.accelerator.device), check=False)
        return prune(
            self.adapted,
            plan=plan,
            compensation=compensation,
            statistics=self.statistics() if compensation.needs_statistics else None,
            batches=self.splits.calibration(f"fitting {variant.id}") if compensation.needs_batches else None,
            seed=self.recipe.seed,
        )

    @contextmanager
    def counted(self, name: str, *, key: str) -> Iterator[None]:
        """Record seconds and multiply-accumulates of what this process runs while open, by artifact and key."""
        with self.folder.timed(name, key=key), MacCounter() as counter:
            yield
        self.folder.json_artifact(f"work/{name}.json", key=key, make=lambda: counter.macs)

    def work(self, name: str, *, key: str) -> float | None:
        """What was recorded so; None where the artifact is there without it."""
        found = self.folder.current(f"work/{name}.json", key=key, load=read_json)
        return float(found[0]) if found else None

    def evaluation(
        self,
        name: str,
        model: Callable[[], nn.Module],
        *,
        reference: Evaluation | None = None,
        key: str = "",
        use: Literal["evaluate", "validation"] = "evaluate",
    ) -> Evaluation:
        """Outcomes of `model()` on the images of `use`; shared by all processes."""
        config = self.recipe.evaluate
        artifact = f"evaluations/{name}.safetensors"
        full_key = self.evaluation_key(key, use=use)
        current = self.folder.is_current(artifact, key=full_key)
        self.accelerator.wait_for_everyone()
        if current:
            return Evaluation.load(self.folder.path / artifact)
        images = self.splits.images(use)
        loader = self.splits.batches(use, batch_size=config.batch_size)
        with image_progress(disable=not self.accelerator.is_main_process) as progress:
            task = progress.add_task(f"evaluating {name}", total=len(images), note="")
            made = evaluate_model(
                self.classifier(model()),
                loader,
                accelerator=self.accelerator,
                reference=reference,
                class_names=self.splits.class_names,
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

    def evaluation_key(self, key: str, *, use: Literal["evaluate", "validation"] = "evaluate") -> str:
        """Key of an evaluation: of the pruned model, the images and the precision."""
        return key_of(
            model=self.model_key,
            images=self.splits.key(use),
            pruned=key,
            head=self.head_key,
            precision=self.recipe.mixed_precision,
        )

    def variant_key(self, variant: Variant, plan: PrunePlan) -> str:
        """Key of a pruned model: the plan and, where compensation learns from images, these."""
        compensation = variant.compensation
        needs = compensation.needs_statistics or compensation.needs_batches
        return key_of(
            plan=plan.to_dict(),
            compensation=compensation.spec(),
            calibration=self.splits.key("calibrate") if needs else None,
            seed=self.recipe.seed if compensation.needs_batches else None,
        )

    def checkpoint_key(self, variant: Variant, plan: PrunePlan) -> str:
        """Key of a pruned model's checkpoint."""
        return key_of(model=self.model_key, pruned=self.variant_key(variant, plan), format=VERSION)

    def save_checkpoint(self, name: str, model: Callable[[], nn.Module], *, key: str, **about: Any) -> Path:
        """Save `model()` as a checkpoint folder, unless it is there already; returns its path.

        All processes make the model, since what it is fitted to may be theirs together; the main process saves it.
        """
        current = self.folder.is_current(name, key=key)
        self.accelerator.wait_for_everyone()  # nobody writes before all have looked
        if not current:
            made = model()

            def save(made: nn.Module, folder: Path) -> None:
                save_pruned(
                    made,
                    folder,
                    architecture=self.loaded.architecture,
                    data_config=self.data_config,
                    class_names=self.splits.class_names if self.num_classes == self.adapted.num_classes else None,
                    **about,
                )

            self.folder.artifact(name, key=key, make=lambda: made, save=save, load=load_pruned)
            self.accelerator.wait_for_everyone()
        return self.folder.path / name


def weights_key(model: nn.Module) -> str:
    """Key of a model's weights and buffers."""
    digest = hashlib.blake2b(digest_size=12)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _accelerator(recipe: Recipe) -> Accelerator:
    """One for everything the recipe does, since Accelerate keeps one precision per process."""
    installed = [str(tracker) for tracker in get_available_trackers()]
    for name in recipe.trackers:
        if name not in installed:
            raise ValueError(f"tracker '{name}' is not installed; installed are: {', '.join(installed) or 'none'}")
    AcceleratorState._reset_state()  # of an earlier recipe in this process, which may have had another precision
    return Accelerator(
        mixed_precision=recipe.mixed_precision,
        log_with=list(recipe.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(recipe.folder), logging_dir=str(recipe.folder / "logs")),
        # the others wait while the main process mines
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))],
    )
