"""Checkpoints that a run stores: a model with its architecture, transform, class names, origin and provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pathprune.artifacts import Artifact, Codec
from pathprune.models.architecture import Architecture
from pathprune.models.checkpoint import load_pruned, save_pruned
from pathprune.stages.context import Context
from pathprune.stages.images import Splits
from pathprune.stages.provenance import Origin, find_origin


@dataclass(frozen=True)
class Checkpoint:
    """A model to store. `kept` maps each site to the kept columns of the dense model, int64 `[W]`."""

    model: nn.Module
    architecture: Architecture
    data_config: Mapping[str, Any]
    class_names: tuple[str, ...] | None
    kept: Mapping[str, Tensor] | None
    origin: Origin
    provenance: Mapping[str, Any]

    def save(self, folder: Path) -> None:
        """Write the checkpoint as `save_pruned` does."""
        save_pruned(
            self.model,
            folder,
            architecture=self.architecture,
            data_config=self.data_config,
            class_names=self.class_names,
            kept=self.kept,
            base_model=self.origin.base_model,
            license=self.origin.license,
            provenance=self.provenance,
        )


CHECKPOINT_CODEC: Codec[nn.Module] = Codec(Checkpoint.save, load_pruned)


@dataclass(frozen=True)
class Checkpoints:
    """Writer of a run's checkpoints."""

    context: Context
    splits: Splits

    def save(
        self,
        artifact: Artifact[nn.Module],
        build: Callable[[], nn.Module],
        *,
        provenance: Mapping[str, Any],
        kept: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """Store the model that `build` returns, unless the checkpoint is current; return its folder.

        All processes build the model, since a fit may be shared by them; the main process stores it.
        """
        context, model = self.context, self.context.model
        is_current = context.folder.is_current(artifact)
        context.accelerator.wait_for_everyone()  # nobody writes before all have looked
        if not is_current:
            has_own_classes = model.num_classes == model.adapted.num_classes  # not those of a zero-shot head
            checkpoint = Checkpoint(
                build(),
                architecture=model.loaded.architecture,
                data_config=model.data_config,
                class_names=self.splits.class_names if has_own_classes else None,
                kept=kept,
                origin=find_origin(context.recipe, model.loaded),
                provenance=provenance,
            )
            context.folder.write(artifact, checkpoint)
            context.accelerator.wait_for_everyone()
        return context.folder.path / artifact.name
