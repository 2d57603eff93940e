"""Measurements of paths, image by image: joint attribution score and effects, for each kind of path."""

# N images

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pathprune.inspection.interventions import Effects
from pathprune.mining import METHODS, Method

PathKind = Method | Literal["random"]
PATH_KINDS: tuple[PathKind, ...] = (*METHODS, "random")

SCALING_FACTORS = {"removed": 0.0, "enhanced": 2.0}
"""Factors of a path's neurons, under the names that `PathMeasure` gives to their effects."""


@dataclass(frozen=True)
class PathMeasure:
    """Measurements of one path per image; float64 on the CPU."""

    jas: Tensor  # [N], joint attribution score
    removed: Effects
    enhanced: Effects

    @classmethod
    def concat(cls, parts: Iterable[PathMeasure]) -> PathMeasure:
        """Return the images of all parts, in order."""
        tensors = [part.to_tensors() for part in parts]
        return cls.from_tensors({name: torch.cat([part[name] for part in tensors]) for name in tensors[0]})

    @classmethod
    def mean(cls, measures: Iterable[PathMeasure]) -> PathMeasure:
        """Return the mean over several paths of the same images."""
        tensors = [measure.to_tensors() for measure in measures]
        return cls.from_tensors({name: torch.stack([each[name] for each in tensors]).mean(0) for name in tensors[0]})

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name: `jas`, `removed.probability`, `removed.correct`, `enhanced.probability`, …."""
        return {
            "jas": self.jas,
            "removed.probability": self.removed.probability,
            "removed.correct": self.removed.correct,
            "enhanced.probability": self.enhanced.probability,
            "enhanced.correct": self.enhanced.correct,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> PathMeasure:
        """Build a measure from the result of `to_tensors`."""
        return cls(
            jas=tensors["jas"],
            removed=Effects(tensors["removed.probability"], tensors["removed.correct"]),
            enhanced=Effects(tensors["enhanced.probability"], tensors["enhanced.correct"]),
        )


@dataclass(frozen=True)
class PathMeasures:
    """Measurements of the same images for every kind of path."""

    by_kind: Mapping[PathKind, PathMeasure]

    def __getitem__(self, kind: PathKind) -> PathMeasure:
        return self.by_kind[kind]

    @property
    def num_images(self) -> int:
        """The number of measured images."""
        return len(self["jas"].jas)

    @classmethod
    def concat(cls, parts: Sequence[PathMeasures]) -> PathMeasures:
        """Return the images of all parts, in order."""
        return cls({kind: PathMeasure.concat(part[kind] for part in parts) for kind in PATH_KINDS})

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, `<kind>.<name in PathMeasure>`, as stored in a safetensors file."""
        return {
            f"{kind}.{name}": tensor
            for kind, measure in self.by_kind.items()
            for name, tensor in measure.to_tensors().items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> PathMeasures:
        """Build measures from the result of `to_tensors`."""
        return cls({kind: PathMeasure.from_tensors(_select(tensors, f"{kind}.")) for kind in PATH_KINDS})


def _select(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors with names of this prefix, under their names without the prefix."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
