"""The mining stage: how accurately to locate paths, the paths of all sampled images, and their class statistics."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathprune.artifacts import Artifact, ArtifactKind, Codec, json_codec
from pathprune.data import make_loader
from pathprune.evaluation import MacCounter
from pathprune.keys import key_of_array
from pathprune.mining import (
    ClassStats,
    CleanCosine,
    MinedPaths,
    PathAccuracy,
    PathSet,
    ShardFolder,
    Tokens,
    choose_nodes,
    compare_paths,
    locate_paths,
    mine_split,
    resolve_nodes,
    save_paths,
)
from pathprune.mining.accuracy import CONVERGED_NODES, GOAL, MIXED_GOAL
from pathprune.models.adapt import find_device
from pathprune.progress import image_progress
from pathprune.recipe import Recipe
from pathprune.scoring.criteria import parse_criterion
from pathprune.stages.context import Context
from pathprune.stages.images import Splits
from pathprune.stages.sampling import MiningSample

log = logging.getLogger(__name__)

PRECISIONS = {"no": None, "bf16": torch.bfloat16}

_STATS_FILE, _PATHS_FILE = "stats.safetensors", "paths.parquet"


@dataclass(frozen=True)
class FinishedShards:
    """All shards of a mining run, ready to be merged."""

    shards: ShardFolder
    number: int

    def save(self, folder: Path) -> None:
        """Write the shards as one file of class statistics and one of paths, a shard in memory at a time."""
        folder.mkdir()
        self.shards.save_sums(self.number, folder / _STATS_FILE)
        save_paths(self.shards.read_paths(self.number), folder / _PATHS_FILE)


@dataclass(frozen=True)
class MinedFolder:
    """Class statistics and paths in memory, ready to be written."""

    stats: ClassStats
    paths: PathSet

    def save(self, folder: Path) -> None:
        """Write both files."""
        folder.mkdir()
        self.stats.save(folder / _STATS_FILE)
        self.paths.save(folder / _PATHS_FILE)


MINED: ArtifactKind[ClassStats] = ArtifactKind(
    "mined/{}",
    inputs=("model", "images", "positions", "tokens", "settings"),
    codec=Codec(lambda mined, folder: mined.save(folder), lambda folder: ClassStats.load(folder / _STATS_FILE)),
)
ACCURACY: ArtifactKind[PathAccuracy] = ArtifactKind(
    "accuracy/{}.json",
    inputs=("model", "images", "tokens", "settings", "nodes", "check_images"),
    codec=json_codec(PathAccuracy.to_dict, PathAccuracy.from_dict),
)


def tokens_to_mine(recipe: Recipe) -> tuple[Tokens, ...]:
    """Return the token settings that the recipe's criteria need, or ("all",) where no criterion needs paths."""
    needed = (parse_criterion(spec).needs_mining for spec in recipe.score.criteria)
    return tuple(dict.fromkeys(tokens for tokens in needed if tokens is not None)) or ("all",)


class Mining:
    """Neuron paths of the recipe's mining images, one run per token setting; all processes take part."""

    def __init__(self, context: Context, splits: Splits, sample: MiningSample) -> None:
        self._context, self._splits, self.sample = context, splits, sample
        self._config = context.recipe.mine
        self._stats: dict[Tokens, ClassStats] = {}
        self._accuracies: dict[Tokens, PathAccuracy | None] = {}

    @property
    def accuracies(self) -> dict[Tokens, PathAccuracy]:
        """Accuracies checked so far, by token setting."""
        return {tokens: accuracy for tokens, accuracy in self._accuracies.items() if accuracy is not None}

    def artifact(self, tokens: Tokens) -> Artifact[ClassStats]:
        """Describe the mined statistics."""
        return MINED.of(
            tokens,
            model=self._context.model_key,
            images=self.sample.key,
            positions=key_of_array(self.sample.images.indices),  # which the stored paths name
            tokens=tokens,
            settings=self._settings(tokens),
        )

    def stats_file(self, tokens: Tokens) -> Path:
        """Return where the class statistics are stored."""
        return self._context.folder.path / MINED.path.format(tokens) / _STATS_FILE

    def stats(self, tokens: Tokens) -> ClassStats:
        """Return class statistics of the paths, mined if they are not stored.

        Finished shards stay under `mining/` until all are merged, so that an interrupted run resumes.
        """
        if tokens not in self._stats:
            self.accuracy(tokens)  # warns ahead of hours of mining
            self._stats[tokens] = self._mined(tokens)
        return self._stats[tokens]

    def paths(self, tokens: Tokens) -> PathSet:
        """Return the path of every mined image."""
        self.stats(tokens)
        return PathSet.load(self.stats_file(tokens).with_name(_PATHS_FILE))

    def _mined(self, tokens: Tokens) -> ClassStats:
        context, artifact = self._context, self.artifact(tokens)
        stored = context.folder.read(artifact)
        context.accelerator.wait_for_everyone()  # nobody writes before all have looked
        if stored is not None:
            return self._rename_classes(stored, artifact)
        shards = ShardFolder(
            context.folder.path / "mining" / tokens,
            key=artifact.key,
            widths={site.name: site.width for site in context.model.adapted.sites},
            class_names=self._splits.class_names,
            settings=self._settings(tokens),
        )
        if context.is_main:
            shards.prepare()
        context.accelerator.wait_for_everyone()
        with context.timed(artifact):
            number = self._mine(tokens, shards)
        context.accelerator.wait_for_everyone()
        if context.is_main:
            context.folder.write(artifact, FinishedShards(shards, number))
            context.folder.add_work(artifact, macs=self._count_macs(tokens))
            shards.remove()
        context.accelerator.wait_for_everyone()
        return artifact.codec.load(context.folder.path / artifact.name)

    def _rename_classes(self, stats: ClassStats, artifact: Artifact[ClassStats]) -> ClassStats:
        """Return the statistics under the classes' present names; a renamed class needs no new mining."""
        names = self._splits.class_names
        if stats.class_names == names:
            return stats
        in_memory = stats.select_classes(torch.ones(len(names), dtype=torch.bool))
        renamed = replace(in_memory, class_names=names)
        if self._context.is_main:
            folder = self._context.folder
            paths = PathSet.load(folder.path / artifact.name / _PATHS_FILE)
            folder.write(artifact, MinedFolder(renamed, replace(paths, class_names=names)))
        self._context.accelerator.wait_for_everyone()
        return renamed

    def _count_macs(self, tokens: Tokens) -> float:
        """Return the multiply-accumulates of mining all images, counted on one of them."""
        image, label = self.sample.images[0]
        batch = image[None].to(find_device(self._context.model.module))
        with MacCounter() as counter:
            self.locate(batch, torch.tensor([label]), tokens)
        return counter.macs * len(self.sample.images)

    def accuracy(self, tokens: Tokens) -> PathAccuracy | None:
        """Return how well a sample's paths agree with converged paths; None where the recipe asks for no check.

        With `mine.nodes: auto`, the accuracy is that of the fewest nodes that reach the goal. A missed goal is logged.
        """
        if tokens not in self._accuracies:
            config = self._config
            if config.check_images == 0 or config.method == "activation":  # nothing is integrated
                self._accuracies[tokens] = None
                return None
            artifact = ACCURACY.of(
                tokens,
                model=self._context.model_key,
                images=self.sample.key,
                tokens=tokens,
                settings=self.sample.path_settings(),
                nodes=None if config.nodes == "auto" else self.nodes(tokens),
                check_images=config.check_images,
            )
            accuracy = self._context.obtain_by_main(artifact, lambda: self._check(tokens))
            if not accuracy.meets_goal and self._context.is_main:
                log.warning("paths (%s tokens) miss their goal: %s; %s", tokens, accuracy, self._remedy())
            self._accuracies[tokens] = accuracy
        return self._accuracies[tokens]

    def _remedy(self) -> str:
        config = self._config
        if config.precision != "no":  # more nodes do not undo rounding
            return "mine.precision=no does not round"
        if config.nodes != "auto":
            return "raise mine.nodes, or let mine.nodes=auto choose"
        return "mine.rule=gauss-legendre needs fewer nodes"

    def _check(self, tokens: Tokens) -> PathAccuracy:
        config, images = self._config, self.sample.images
        by_class = np.argsort(images.labels, kind="stable")
        num_images = min(config.check_images, len(images))
        sample = images.take(by_class[np.linspace(0, len(images) - 1, num_images).round().astype(np.int64)])
        # as many rows as mining holds at once
        nodes = None if config.nodes == "auto" else self.nodes(tokens)[0]
        rows = 32 if config.batch_size == "auto" or nodes is None else config.batch_size * nodes
        workers = self._context.recipe.data.num_workers
        loader = make_loader(sample, batch_size=max(1, rows // CONVERGED_NODES), num_workers=workers)
        device = find_device(self._context.model.module)
        goal = GOAL if config.precision == "no" else MIXED_GOAL

        def mine(**settings: Any) -> Iterator[MinedPaths]:
            for batch, labels in loader:
                yield self.locate(batch.to(device), labels, tokens, **settings)

        converged = list(mine(rule="gauss-legendre", nodes=CONVERGED_NODES, first_nodes=CONVERGED_NODES, dtype=None))
        if nodes is None:
            return choose_nodes(lambda number: mine(nodes=number), converged, goal=goal)
        return compare_paths(list(mine()), converged, nodes=nodes, goal=goal)

    def nodes(self, tokens: Tokens) -> tuple[int, int]:
        """Return the number of quadrature nodes, and of the first layer's; `mine.nodes: auto` chooses by accuracy."""
        config = self._config
        if config.nodes != "auto":
            return resolve_nodes(tokens, config.nodes, config.first_nodes)
        accuracy = self.accuracy(tokens)  # None where only the JAS of paths is integrated
        return resolve_nodes(tokens, accuracy.nodes if accuracy else None, config.first_nodes)

    def _settings(self, tokens: Tokens) -> dict[str, Any]:
        nodes, first_nodes = self.nodes(tokens)
        return {**self.sample.path_settings(), "nodes": nodes, "first_nodes": first_nodes, "tokens": tokens}

    def locate(self, images: Tensor, labels: Tensor, tokens: Tokens, **settings: Any) -> MinedPaths:
        """Locate the paths of a batch with the recipe's settings, overridden by `settings` of `locate_paths`."""
        config, objective = self._config, self._context.model.objective
        if "nodes" not in settings:
            settings["nodes"], settings["first_nodes"] = self.nodes(tokens)
        recipe_settings: dict[str, Any] = {
            "method": config.method,
            "rule": config.rule,
            "first_nodes": config.first_nodes,
            "top_k": config.top_k,
            "objective": objective,
            "dtype": PRECISIONS[config.precision],
        }
        targets = None if isinstance(objective, CleanCosine) else labels
        return locate_paths(self._context.model.adapted, images, targets, tokens=tokens, **recipe_settings | settings)

    def _mine(self, tokens: Tokens, shards: ShardFolder) -> int:
        """Mine this process's share; return the number of shards of all processes."""
        config, images, accelerator = self._config, self.sample.images, self._context.accelerator
        with image_progress(disable=not accelerator.is_main_process) as progress:
            task = progress.add_task(f"mining paths ({tokens} tokens)", total=len(images), note="")
            return mine_split(
                self._context.model.adapted,
                images,
                shards,
                locate=lambda batch, labels: self.locate(batch, labels, tokens),
                shard_size=config.shard_size,
                batch_size=config.batch_size,
                process=accelerator.process_index,
                num_processes=accelerator.num_processes,
                num_workers=self._context.recipe.data.num_workers,
                on_progress=lambda done: progress.update(task, completed=min(done, len(images))),
            )
