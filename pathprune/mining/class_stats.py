"""What mining yields of each class: how often its images have a neuron on their paths, and with how much mass.

On disk it carries its description beside its data, see `pathprune.mining.records`.
"""

# B images of a batch, K classes, L layers, W neurons of a layer, k neurons chosen in a layer

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pathprune.files import write_atomically
from pathprune.mining.paths import MinedPaths, normalised, per_layer
from pathprune.mining.records import Settings, check_same_mining, described, description
from pathprune.mining.stored_sums import StoredSums, write_sums

KINDS = ("count", "mass", "published-mass")


@dataclass
class ClassStats:
    """Per class and neuron, summed over images: how often on a path, and how much mass; on the CPU.

    Built by `ClassStats.empty` in float64, streamed with `update`, merged with `+`. On disk: a safetensors file with
    `num_images` `[K]` and, for every site, `count.<site>`, `mass.<site>` and `published-mass.<site>` `[K, W_l]`, in
    float32; `load` leaves them there, and every layer is read when it is asked for.
    """

    site_names: tuple[str, ...]
    class_names: tuple[str, ...]
    num_images: Tensor  # int64 [K]
    count: Sequence[Tensor]  # per layer [K, W_l]: images that have the neuron on their path
    mass: Sequence[Tensor]  # per layer [K, W_l]: summed `MinedPaths.mass`
    published_mass: Sequence[Tensor]  # per layer [K, W_l]: the same of |score|, for comparison
    settings: Settings = field(default_factory=dict)  # how the paths were mined

    @classmethod
    def empty(
        cls, widths: Mapping[str, int], class_names: Sequence[str], settings: Settings | None = None
    ) -> ClassStats:
        """No images yet. `widths` maps every site's name to its number of neurons, in the order of the layers."""

        def zeros() -> tuple[Tensor, ...]:
            return tuple(torch.zeros(len(class_names), width, dtype=torch.float64) for width in widths.values())

        num_images = torch.zeros(len(class_names), dtype=torch.int64)
        return cls(tuple(widths), tuple(class_names), num_images, zeros(), zeros(), zeros(), dict(settings or {}))

    def update(self, mined: MinedPaths, labels: Tensor) -> None:
        """Add a batch, in place, to the classes that `labels` (int64 `[B]`) name."""
        labels = labels.to("cpu", torch.int64)
        if labels.shape != mined.paths.shape[:1]:
            raise ValueError(f"labels have shape {list(labels.shape)}, but {len(mined.paths)} images were mined")
        for label in labels.tolist():
            if not 0 <= label < len(self.class_names):
                raise ValueError(f"label {label} is out of range: there are {len(self.class_names)} classes")
        widths, expected = [own.shape[1] for own in per_layer(mined.own)], [count.shape[1] for count in self.count]
        if widths != expected:
            raise ValueError(f"layers of widths {widths} were mined, but these statistics are for widths {expected}")
        self._hold()
        self.num_images += torch.bincount(labels, minlength=len(self.class_names))
        add_counts(self.count, mined.paths.cpu(), labels)
        for mass, mass_BW in zip(self.mass, per_layer(mined.mass), strict=True):
            mass.index_add_(0, labels, mass_BW.cpu().to(torch.float64))
        for published, scores_BW in zip(self.published_mass, per_layer(mined.scores), strict=True):
            published.index_add_(0, labels, normalised(scores_BW.cpu().to(torch.float64)))

    def add_classes(self, classes: Tensor, other: ClassStats) -> None:
        """Add, in place, the statistics of some classes only: row `i` of `other` is of class `classes[i]` (int64)."""
        self._hold()
        self.num_images.index_add_(0, classes, other.num_images)
        for kind in KINDS:
            for ours, theirs in zip(self.sums(kind), other.sums(kind), strict=True):
                ours.index_add_(0, classes, theirs.to(ours.dtype))

    def of_classes(self, chosen_K: Tensor) -> ClassStats:
        """The statistics of some of the classes, by a mask (bool `[K]`)."""
        names = tuple(name for name, chosen in zip(self.class_names, chosen_K.tolist(), strict=True) if chosen)
        count, mass, published = (tuple(x_KW[chosen_K] for x_KW in self.sums(kind)) for kind in KINDS)
        return ClassStats(self.site_names, names, self.num_images[chosen_K], count, mass, published, self.settings)

    def _hold(self) -> None:
        """Have sums that were left on the disk in memory, to add to them."""
        held = (tuple(x.double() for x in x_L) if isinstance(x_L, StoredSums) else x_L for x_L in map(self.sums, KINDS))
        self.count, self.mass, self.published_mass = held

    def __add__(self, other: ClassStats) -> ClassStats:
        """The statistics of both sets of images."""
        check_same_mining(self, other)
        return replace(
            self,
            num_images=self.num_images + other.num_images,
            count=tuple(a + b for a, b in zip(self.count, other.count, strict=True)),
            mass=tuple(a + b for a, b in zip(self.mass, other.mass, strict=True)),
            published_mass=tuple(a + b for a, b in zip(self.published_mass, other.published_mass, strict=True)),
        )

    @property
    def widths(self) -> dict[str, int]:
        """The number of neurons of every site."""
        return {site: count.shape[1] for site, count in zip(self.site_names, self.count, strict=True)}

    @property
    def empty_classes(self) -> list[int]:
        """Classes of which no image was seen."""
        return (self.num_images == 0).nonzero().flatten().tolist()

    def sums(self, kind: str) -> Sequence[Tensor]:
        """`count`, `mass` or `published-mass`, summed over the images of a class: per layer `[K, W_l]`."""
        if kind not in KINDS:
            raise ValueError(f"unknown kind of class statistics {kind!r}; choose from {', '.join(KINDS)}")
        return {"count": self.count, "mass": self.mass, "published-mass": self.published_mass}[kind]

    def means(self, kind: str) -> Iterator[Tensor]:
        """`sums` divided by the images of the class: per layer float64 `[K, W_l]`; zeros for `empty_classes`."""
        num_images_K1 = self.num_images.clamp(min=1)[:, None]
        return (sums_KW.double() / num_images_K1 for sums_KW in self.sums(kind))

    def save(self, file: Path | str) -> None:
        """Write the safetensors file, all or nothing."""
        save_stats([(0, self)], file, widths=self.widths, class_names=self.class_names, settings=self.settings)

    @classmethod
    def load(cls, file: Path | str) -> ClassStats:
        """Open a file that `save` wrote. Raises `ValueError` for anything else and for another schema version."""
        try:
            with safe_open(file, framework="pt") as opened:
                about = described((opened.metadata() or {}).get("pathprune"), file, "class statistics")
                num_images = opened.get_tensor("num_images").clone()
        except SafetensorError as error:
            raise ValueError(f"{file} does not hold class statistics: {error}") from error
        sites = tuple(about["site_names"])
        count, mass, published = (
            StoredSums.of(Path(file).absolute(), (f"{kind}.{site}" for site in sites)) for kind in KINDS
        )
        return cls(sites, tuple(about["class_names"]), num_images, count, mass, published, about["settings"])

    def tensors(self) -> dict[str, Tensor]:
        """What the file holds, by name."""
        tensors = {"num_images": self.num_images}
        for kind in KINDS:
            tensors |= {f"{kind}.{site}": sums for site, sums in zip(self.site_names, self.sums(kind), strict=True)}
        return tensors


def add_counts(counts: Sequence[Tensor], paths_BLk: Tensor, labels_B: Tensor) -> None:
    """Count, in place, the neurons on each image's path for the class that `labels_B` names: per layer `[K, W_l]`."""
    for count_KW, chosen_Bk in zip(counts, paths_BLk.unbind(1), strict=True):
        count_KW.index_put_((labels_B[:, None], chosen_Bk), torch.ones((), dtype=count_KW.dtype), accumulate=True)


def save_stats(
    blocks: Iterable[tuple[int, ClassStats]],
    file: Path | str,
    *,
    widths: Mapping[str, int],
    class_names: Sequence[str],
    settings: Settings,
) -> None:
    """Write the statistics of all classes as one file, all or nothing, a block of consecutive classes at a time.

    A block comes with its first class. Classes without a block have no images.
    """
    empty = ClassStats.empty(widths, (), settings)
    about = description(replace(empty, class_names=tuple(class_names)))
    shapes = {name: (len(class_names), *tensor.shape[1:]) for name, tensor in empty.tensors().items()}
    with write_atomically(Path(file)) as part:
        tensors = ((first_class, block.tensors()) for first_class, block in blocks)
        write_sums(part, shapes=shapes, description=about, blocks=tensors)
