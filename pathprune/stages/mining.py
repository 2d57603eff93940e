"""The mining stage of an experiment: which images, how accurately, and the class statistics of their paths."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from pathprune.data import SKIPPED, LabelledImages, make_loader
from pathprune.data.class_names import class_indices
from pathprune.evaluation import MacCounter
from pathprune.keys import key_of
from pathprune.mining import (
    ClassStats,
    CleanCosine,
    LabelProbability,
    MinedPaths,
    Objective,
    PathAccuracy,
    Sampling,
    ShardFolder,
    Tokens,
    choose_nodes,
    compare_paths,
    locate_paths,
    mine_split,
    resolve_nodes,
    sample_for_mining,
    save_paths,
)
from pathprune.mining.accuracy import CONVERGED_NODES, GOAL, MIXED_GOAL
from pathprune.models.adapt import evaluating, model_device
from pathprune.models.seam import AdaptedModel
from pathprune.progress import image_progress
from pathprune.recipe import Recipe
from pathprune.runs import RunFolder
from pathprune.scoring.criteria import parse_criterion
from pathprune.stages.images import Splits

log = logging.getLogger(__name__)

CHOSEN = "images/mine.safetensors"  # positions in the split, and the class that each image counts for
PRECISIONS = {"no": None, "bf16": torch.bfloat16}


def tokens_to_mine(recipe: Recipe) -> tuple[Tokens, ...]:
    """The ways to clamp tokens that the recipe's criteria need; all tokens, where none needs any."""
    needed = (parse_criterion(spec).needs_mining for spec in recipe.score.criteria)
    return tuple(dict.fromkeys(tokens for tokens in needed if tokens is not None)) or ("all",)


class Mining:
    """Mines the recipe's mining images, once for each way to clamp tokens; all processes take part."""

    def __init__(
        self,
        recipe: Recipe,
        adapted: AdaptedModel,
        *,
        objective: Objective,
        num_classes: int | None,
        model_key: str,
        splits: Splits,
        folder: RunFolder,
        accelerator: Accelerator,
    ) -> None:
        """`num_classes` are those that labels are of, None where the model has none."""
        self._config, self._num_workers, self._seed = recipe.mine, recipe.data.num_workers, recipe.seed
        self._slices_head = recipe.model.slice_head  # its classes are those that are left
        self._predicted_at_once = recipe.evaluate.batch_size
        self._adapted, self.objective, self._num_classes = adapted, objective, num_classes
        self._model_key, self._splits = model_key, splits
        self._folder, self._accelerator = folder, accelerator
        self._stats: dict[Tokens, ClassStats] = {}
        self._accuracies: dict[Tokens, PathAccuracy | None] = {}

    @property
    def accuracies(self) -> dict[Tokens, PathAccuracy]:
        """The accuracy of what was mined or loaded so far, where it was checked."""
        return {tokens: found for tokens, found in self._accuracies.items() if found is not None}

    def choose(self, images: LabelledImages, class_names: tuple[str, ...]) -> LabelledImages:
        """The images of the split to mine, labelled with the class that each counts for; shared by all processes."""
        config = self._config
        self._check_labels(images)
        if self._num_classes is None and not images.is_labelled:
            images = replace(images, labels=np.zeros_like(images.labels))
        of_model = () if self._slices_head else self._splits.classes
        classes = list(of_model) if config.classes is None else class_indices(config.classes, class_names)
        sampling = Sampling(
            num_images=config.num_images,
            images_per_class=config.images_per_class,
            classes=classes or None,
            by=config.targets,
            only_correct=config.only_correct,
        )
        key = key_of(
            sampling=asdict(sampling),
            seed=self._seed,
            labels=hashlib.blake2b(images.labels.tobytes()).hexdigest(),
            predictions=[self._model_key, self._plain_settings(), images.source_key]
            if sampling.needs_predictions
            else None,
        )

        def load(file: Path) -> LabelledImages:
            stored = load_file(file)
            names = images.class_names if sampling.by == "label" else ()
            return replace(images, indices=stored["indices"], labels=stored["labels"], class_names=names)

        found = self._folder.current(CHOSEN, key=key, load=load)
        self._accelerator.wait_for_everyone()  # nobody writes before all have looked
        if found:
            return found[0]
        chosen = sample_for_mining(
            images, sampling, num_classes=len(class_names), predict=self._predict, seed=self._seed
        )
        return self._folder.artifact(
            CHOSEN,
            key=key,
            make=lambda: chosen,
            save=lambda made, file: save_file({"indices": made.indices, "labels": made.labels}, file),
            load=load,
        )

    def _check_labels(self, images: LabelledImages) -> None:
        config = self._config
        if isinstance(self.objective, CleanCosine) and (config.targets == "prediction" or config.only_correct):
            raise ValueError(
                "the objective cosine has no classes to predict; leave out mine.targets=prediction and "
                "mine.only_correct, or give it classes by mine.objective={name: zero-shot, head: FILE}"
            )
        if config.only_correct and not images.is_labelled:
            raise ValueError(f"mine.only_correct needs labels, and split '{images.split}' has none; leave it out")
        if config.only_correct and isinstance(self.objective, LabelProbability):
            raise ValueError("mine.only_correct is about images with one label each, label-probability about several")

    def _predict(self, images: LabelledImages) -> NDArray[np.int64]:
        """The class that the model predicts for each image, `SKIPPED` if it is unreadable; shared by all processes."""
        accelerator, model = self._accelerator, self._adapted.model
        own = images.take(np.arange(accelerator.process_index, len(images), accelerator.num_processes))
        device, predictions = model_device(model), [torch.zeros(0, dtype=torch.int64)]
        loader = make_loader(own, batch_size=self._predicted_at_once, num_workers=self._num_workers)
        with (
            image_progress(disable=not accelerator.is_main_process) as progress,
            evaluating(model),
            torch.no_grad(),
        ):
            task = progress.add_task("predicting classes to sample by", total=len(own), note="")
            for batch, labels in loader:
                logits = self.objective.class_logits(model(batch.to(device)))
                assert logits is not None, "objectives without classes are refused before"
                predictions.append(logits.argmax(-1).cpu().where(labels != SKIPPED, SKIPPED))
                progress.advance(task, len(labels))
        result = np.empty(len(images), dtype=np.int64)
        for process, part in enumerate(gather_object([torch.cat(predictions).numpy()])):
            result[process :: accelerator.num_processes] = part
        return result

    def stats(self, tokens: Tokens) -> ClassStats:
        """Class statistics of the paths located on the mining images; the paths go beside them.

        What is finished is in `mining/` until all is.
        """
        if tokens not in self._stats:
            self.accuracy(tokens)  # ahead of hours of mining, to be warned in time
            name, key = f"mined/{tokens}", self.key(tokens)

            def load(folder: Path) -> ClassStats:
                return ClassStats.load(folder / "stats.safetensors")

            found = self._folder.current(name, key=key, load=load)
            self._accelerator.wait_for_everyone()  # nobody writes before all have looked
            if found is None:
                shards = self._shards(tokens, key)
                if self._folder.main:
                    shards.prepare()
                self._accelerator.wait_for_everyone()
                with self._folder.timed(name, key=key):
                    num_shards = self._mine(tokens, shards)
                self._accelerator.wait_for_everyone()

                def save(_: None, folder: Path) -> None:
                    folder.mkdir()
                    shards.save_sums(num_shards, folder / "stats.safetensors")
                    save_paths(shards.read_paths(num_shards), folder / "paths.parquet")

                if self._folder.main:
                    self._folder.artifact(name, key=key, make=lambda: None, save=save, load=lambda _: None)
                    shards.remove()
                self._accelerator.wait_for_everyone()
                found = (load(self._folder.path / name),)
                self.work(tokens)
            (self._stats[tokens],) = found
        return self._stats[tokens]

    def key(self, tokens: Tokens) -> str:
        """Key of the statistics: all that they depend on."""
        return key_of(
            model=self._model_key, images=self._splits.key("mine"), tokens=tokens, settings=self._settings(tokens)
        )

    def accuracy(self, tokens: Tokens) -> PathAccuracy | None:
        """How well a sample's paths agree with converged ones; None where nothing is integrated, or no check is asked.

        With `mine.nodes: auto`, of the fewest nodes that reach the goal. One that is missed is warned of.
        """
        if tokens not in self._accuracies:
            config = self._config
            if config.check_images == 0 or config.method == "activation":
                self._accuracies[tokens] = None
                return None
            key = key_of(
                model=self._model_key,
                images=self._splits.key("mine"),
                tokens=tokens,
                settings=self._plain_settings(),
                nodes=None if config.nodes == "auto" else self.nodes(tokens),
                check_images=config.check_images,
            )
            with self._main_first():
                content = self._folder.json_artifact(
                    f"accuracy/{tokens}.json", key=key, make=lambda: self._check(tokens).to_dict()
                )
            accuracy = PathAccuracy.from_dict(content)
            if not accuracy.meets_goal and self._folder.main:
                log.warning("paths (%s tokens) miss their goal: %s; %s", tokens, accuracy, self._remedy())
            self._accuracies[tokens] = accuracy
        return self._accuracies[tokens]

    def work(self, tokens: Tokens) -> float:
        """The multiply-accumulates that mining all images took, as counted on one of them."""
        images = self._splits.images("mine")

        def count() -> float:
            image, label = images[0]
            with MacCounter() as counter:
                batch = image[None].to(model_device(self._adapted.model))
                self.locate(batch, torch.tensor([label]), tokens)
            return counter.macs

        with self._main_first():
            of_one: float = self._folder.json_artifact(f"work/mining-{tokens}.json", key=self.key(tokens), make=count)
        return of_one * len(images)

    def _remedy(self) -> str:
        config = self._config
        if config.precision != "no":  # whose rounding more nodes do not undo
            return "mine.precision=no does not round"
        if config.nodes != "auto":
            return "raise mine.nodes, or let mine.nodes=auto choose"
        return "mine.rule=gauss-legendre needs fewer nodes"

    def _check(self, tokens: Tokens) -> PathAccuracy:
        config, images = self._config, self._splits.images("mine")
        by_class = np.argsort(images.labels, kind="stable")
        number = min(config.check_images, len(images))
        sample = images.take(by_class[np.linspace(0, len(images) - 1, number).round().astype(np.int64)])
        # as many rows as mining holds at once
        nodes = None if config.nodes == "auto" else self.nodes(tokens)[0]
        rows = 32 if config.batch_size == "auto" or nodes is None else config.batch_size * nodes
        loader = make_loader(sample, batch_size=max(1, rows // CONVERGED_NODES), num_workers=self._num_workers)
        device = model_device(self._adapted.model)
        goal = GOAL if config.precision == "no" else MIXED_GOAL

        def mine(**settings: Any) -> Iterator[MinedPaths]:
            for batch, labels in loader:
                yield self.locate(batch.to(device), labels, tokens, **settings)

        converged = list(mine(rule="gauss-legendre", nodes=CONVERGED_NODES, first_nodes=CONVERGED_NODES, dtype=None))
        if nodes is None:
            return choose_nodes(lambda number: mine(nodes=number), converged, goal=goal)
        return compare_paths(list(mine()), converged, nodes=nodes, goal=goal)

    def nodes(self, tokens: Tokens) -> tuple[int, int]:
        """The number of quadrature nodes and that of the first layer, chosen by accuracy where the recipe says so."""
        config = self._config
        if config.nodes != "auto":
            return resolve_nodes(tokens, config.nodes, config.first_nodes)
        chosen = self.accuracy(tokens)  # None where only the JAS of paths is integrated
        return resolve_nodes(tokens, chosen.nodes if chosen else None, config.first_nodes)

    def _plain_settings(self) -> dict[str, Any]:
        """The recipe's settings that decide which paths are found, as plain data."""
        plain = self._config.model_dump(mode="json", exclude={"check_images"}, exclude_none=True)
        if self._config.objective is not None:
            plain["objective"] = self._config.objective.spec()
        return plain

    def _settings(self, tokens: Tokens) -> dict[str, Any]:
        nodes, first_nodes = self.nodes(tokens)
        return {**self._plain_settings(), "nodes": nodes, "first_nodes": first_nodes, "tokens": tokens}

    def _shards(self, tokens: Tokens, key: str) -> ShardFolder:
        return ShardFolder(
            self._folder.path / "mining" / tokens,
            key=key,
            widths={site.name: site.width for site in self._adapted.sites},
            class_names=self._splits.class_names,
            settings=self._settings(tokens),
        )

    def locate(self, images: Tensor, labels: Tensor, tokens: Tokens, **settings: Any) -> MinedPaths:
        """The paths of a batch as the recipe has them located, but for `settings`."""
        config = self._config
        if "nodes" not in settings:
            settings["nodes"], settings["first_nodes"] = self.nodes(tokens)
        given: dict[str, Any] = {
            "method": config.method,
            "rule": config.rule,
            "first_nodes": config.first_nodes,
            "top_k": config.top_k,
            "objective": self.objective,
            "dtype": PRECISIONS[config.precision],
        }
        targets = None if isinstance(self.objective, CleanCosine) else labels
        return locate_paths(self._adapted, images, targets, tokens=tokens, **given | settings)

    def _mine(self, tokens: Tokens, shards: ShardFolder) -> int:
        """Mine this process's share; returns the number of shards of all processes."""
        config, images = self._config, self._splits.images("mine")
        with image_progress(disable=not self._accelerator.is_main_process) as progress:
            task = progress.add_task(f"mining paths ({tokens} tokens)", total=len(images), note="")
            return mine_split(
                self._adapted,
                images,
                shards,
                locate=lambda batch, labels: self.locate(batch, labels, tokens),
                shard_size=config.shard_size,
                batch_size=config.batch_size,
                process=self._accelerator.process_index,
                num_processes=self._accelerator.num_processes,
                num_workers=self._num_workers,
                on_progress=lambda done: progress.update(task, completed=min(done, len(images))),
            )

    def _main_first(self) -> AbstractContextManager[None]:
        return self._accelerator.main_process_first()  # type: ignore[no-any-return]
