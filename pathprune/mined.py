"""The mining stage of an experiment: how accurate it is, and the class statistics of all paths."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from pathprune.data import make_loader
from pathprune.mining import (
    ClassStats,
    MinedPaths,
    Objective,
    PathAccuracy,
    ShardFolder,
    default_objective,
    fewest_nodes,
    locate_paths,
    mine_split,
    path_accuracy,
    save_paths,
)
from pathprune.mining.accuracy import CONVERGED_NODES, GOAL, MIXED_GOAL
from pathprune.models.adapt import model_device
from pathprune.models.seam import AdaptedModel
from pathprune.progress import image_progress
from pathprune.recipe import DEFAULT_NODES, Recipe
from pathprune.runs import RunFolder, key_of
from pathprune.scoring.criteria import Tokens
from pathprune.splits import Splits

log = logging.getLogger(__name__)

_DTYPES = {"no": None, "bf16": torch.bfloat16}


class Mining:
    """Mines the recipe's mining images, once for each way to clamp tokens; all processes take part."""

    def __init__(
        self,
        recipe: Recipe,
        adapted: AdaptedModel,
        *,
        model_key: str,
        splits: Splits,
        folder: RunFolder,
        accelerator: Accelerator,
    ) -> None:
        self._config, self._num_workers = recipe.mine, recipe.data.num_workers
        self._adapted, self._model_key, self._splits = adapted, model_key, splits
        self._folder, self._accelerator = folder, accelerator
        self._stats: dict[Tokens, ClassStats] = {}
        self._accuracies: dict[Tokens, PathAccuracy | None] = {}

    @cached_property
    def objective(self) -> Objective:
        """What paths explain."""
        given = self._config.objective
        return default_objective(self._adapted.num_classes) if given is None else given.make()

    @property
    def accuracies(self) -> dict[Tokens, PathAccuracy]:
        """The accuracy of what was mined or loaded so far, where it was checked."""
        return {tokens: found for tokens, found in self._accuracies.items() if found is not None}

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
                num_shards = self._mine(tokens, shards)
                self._accelerator.wait_for_everyone()

                def save(stats: ClassStats, folder: Path) -> None:
                    folder.mkdir()
                    stats.save(folder / "stats.safetensors")
                    save_paths(shards.paths(num_shards), folder / "paths.parquet")

                with self._main_first():
                    stats = self._folder.artifact(
                        name, key=key, make=lambda: shards.sum(num_shards), save=save, load=load
                    )
                found = (stats,)
                if self._folder.main:
                    shards.remove()
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
                check_images=config.check_images,
            )
            with self._main_first():
                accuracy = self._folder.artifact(
                    f"accuracy/{tokens}.json",
                    key=key,
                    make=lambda: self._check(tokens),
                    save=lambda made, file: file.write_text(json.dumps(made.to_dict(), indent=2) + "\n", "utf-8"),
                    load=lambda file: PathAccuracy.from_dict(json.loads(file.read_text(encoding="utf-8"))),
                )
            if not accuracy.reached and self._folder.main:
                log.warning("paths (%s tokens) miss their goal: %s; %s", tokens, accuracy, self._remedy())
            self._accuracies[tokens] = accuracy
        return self._accuracies[tokens]

    def _remedy(self) -> str:
        config = self._config
        if config.nodes != "auto":
            return "raise mine.nodes, or let mine.nodes=auto choose"
        return (
            "mine.precision=no is exact" if config.precision != "no" else "mine.rule=gauss-legendre needs fewer nodes"
        )

    def _check(self, tokens: Tokens) -> PathAccuracy:
        config, images = self._config, self._splits.images("mine")
        by_class = np.argsort(images.labels, kind="stable")
        number = min(config.check_images, len(images))
        sample = images.take(by_class[np.linspace(0, len(images) - 1, number).round().astype(np.int64)])
        # as many rows as mining holds at once
        rows = 32 if "auto" in (config.batch_size, config.nodes) else int(config.batch_size) * int(config.nodes)
        loader = make_loader(sample, batch_size=max(1, rows // CONVERGED_NODES), num_workers=self._num_workers)
        device = model_device(self._adapted.model)
        goal = GOAL if config.precision == "no" else MIXED_GOAL
        nodes = config.nodes

        def mine(**settings: Any) -> Iterator[MinedPaths]:
            for batch, labels in loader:
                yield self._locate(batch.to(device), labels, tokens, **settings)

        converged = list(mine(rule="gauss-legendre", nodes=CONVERGED_NODES, dtype=None))
        if nodes == "auto":
            return fewest_nodes(lambda number: mine(nodes=number), converged, goal=goal)
        return path_accuracy(list(mine(nodes=nodes)), converged, nodes=nodes, goal=goal)

    def _nodes(self, tokens: Tokens) -> int:
        if self._config.nodes != "auto":
            return self._config.nodes
        chosen = self.accuracy(tokens)
        return chosen.nodes if chosen else DEFAULT_NODES  # activations are not integrated, only the JAS of their paths

    def _plain_settings(self) -> dict[str, Any]:
        """The recipe's settings that decide which paths are found, as plain data."""
        plain = self._config.model_dump(mode="json", exclude={"check_images"}, exclude_none=True)
        if self._config.objective is not None:
            plain["objective"] = self._config.objective.spec()
        return plain

    def _settings(self, tokens: Tokens) -> dict[str, Any]:
        return {**self._plain_settings(), "nodes": self._nodes(tokens), "tokens": tokens}

    def _shards(self, tokens: Tokens, key: str) -> ShardFolder:
        return ShardFolder(
            self._folder.path / "mining" / tokens,
            key=key,
            widths={site.name: site.width for site in self._adapted.sites},
            class_names=self._splits.class_names,
            settings=self._settings(tokens),
        )

    def _locate(self, images: Tensor, labels: Tensor, tokens: Tokens, **settings: Any) -> MinedPaths:
        config = self._config
        given: dict[str, Any] = {
            "method": config.method,
            "rule": config.rule,
            "top_k": config.top_k,
            "objective": self.objective,
            "dtype": _DTYPES[config.precision],
        }
        targets = labels if config.targets == "label" else None
        return locate_paths(self._adapted, images, targets, tokens=tokens, **given | settings)

    def _mine(self, tokens: Tokens, shards: ShardFolder) -> int:
        """Mine this process's share; returns the number of shards of all processes."""
        config, images, nodes = self._config, self._splits.images("mine"), self._nodes(tokens)
        with image_progress(disable=not self._accelerator.is_main_process) as progress:
            task = progress.add_task(f"mining paths ({tokens} tokens)", total=len(images), note="")
            return mine_split(
                self._adapted,
                images,
                shards,
                locate=lambda batch, labels: self._locate(batch, labels, tokens, nodes=nodes),
                shard_size=config.shard_size,
                batch_size=config.batch_size,
                only_correct=config.only_correct,
                process=self._accelerator.process_index,
                num_processes=self._accelerator.num_processes,
                num_workers=self._num_workers,
                on_progress=lambda done: progress.update(task, completed=min(done, len(images))),
            )

    def _main_first(self) -> AbstractContextManager[None]:
        return self._accelerator.main_process_first()  # type: ignore[no-any-return]
