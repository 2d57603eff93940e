"""Class statistics of neuron paths: how often, and with how much mass, the images of each class use each neuron."""

# B images of a batch, K classes, L layers, W neurons of a layer, k neurons chosen in a layer

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pathprune.files import write_atomically
from pathprune.mining.choices import STATISTICS
from pathprune.mining.mined_paths import MinedPaths, normalize_rows, split_layers
from pathprune.mining.records import (
    Description,
    Settings,
    check_same_mining,
    read_description,
    write_description,
)
from pathprune.mining.stored_sums import StoredSums, write_sums


@dataclass
class ClassStats:
    """Statistics per class and neuron, summed over the images of the class, on the CPU.

    `empty` starts in float64, `update` adds a batch, and `+` merges. On disk, a safetensors file with `num_images`
    `[K]` and, for every site, `count.<site>`, `mass.<site>` and `published-mass.<site>` `[K, W_l]` in float32. The
    file's metadata carries a description, see `pathprune.mining.records`. `load` reads the sums of a layer on access.
    """

    site_names: tuple[str, ...]
    class_names: tuple[str, ...]
    num_images: Tensor  # int64 [K]
    count: Sequence[Tensor]  # per layer [K, W_l]: number of images with the neuron on their path
    mass: Sequence[Tensor]  # per layer [K, W_l]: sum of `MinedPaths.mass`
    published_mass: Sequence[Tensor]  # per layer [K, W_l]: sum of |score|, normalised per image; for comparison
    settings: Settings = field(default_factory=dict)  # of the mining run

    @classmethod
    def empty(
        cls, widths: Mapping[str, int], class_names: Sequence[str], settings: Settings | None = None
    ) -> ClassStats:
        """Return statistics of no images. `widths` maps site names, in layer order, to numbers of neurons."""

        def zeros() -> tuple[Tensor, ...]:
            return tuple(torch.zeros(len(class_names), width, dtype=torch.float64) for width in widths.values())

        return cls(
            site_names=tuple(widths),
            class_names=tuple(class_names),
            num_images=torch.zeros(len(class_names), dtype=torch.int64),
            count=zeros(),
            mass=zeros(),
            published_mass=zeros(),
            settings=dict(settings or {}),
        )

    def update(self, mined: MinedPaths, labels: Tensor) -> None:
        """Add a batch in place; `labels` (int64 `[B]`) are the classes that the images count for.

        Raises `ValueError`, before anything is added, for labels of another number or out of range and for paths of
        other widths.
        """
        labels = labels.to("cpu", torch.int64)
        if labels.shape != mined.paths.shape[:1]:
            raise ValueError(
                f"labels have shape {list(labels.shape)}, but {len(mined.paths)} images were mined; pass one label "
                "per image"
            )
        for label in labels.tolist():
            if not 0 <= label < len(self.class_names):
                raise ValueError(f"label {label} is out of range: there are {len(self.class_names)} classes")
        widths, expected = [own_BW.shape[1] for own_BW in split_layers(mined.own)], list(self.widths.values())
        if widths != expected:
            raise ValueError(f"the mined layers have widths {widths}, but these statistics have widths {expected}")
        self._load_sums()
        self.num_images += torch.bincount(labels, minlength=len(self.class_names))
        add_counts(self.count, mined.paths.cpu(), labels)
        for mass_KW, mass_BW in zip(self.mass, split_layers(mined.mass), strict=True):
            mass_KW.index_add_(0, labels, mass_BW.cpu().to(torch.float64))
        for published_KW, scores_BW in zip(self.published_mass, split_layers(mined.scores), strict=True):
            published_KW.index_add_(0, labels, normalize_rows(scores_BW.cpu().to(torch.float64)))

    def add_classes(self, classes: Tensor, other: ClassStats) -> None:
        """Add the statistics of `other` in place: row `i` of `other` to class `classes[i]` (int64)."""
        self._load_sums()
        self.num_images.index_add_(0, classes, other.num_images)
        for statistic in STATISTICS:
            for own_KW, other_KW in zip(self.sums(statistic), other.sums(statistic), strict=True):
                own_KW.index_add_(0, classes, other_KW.to(own_KW.dtype))

    def select_classes(self, mask_K: Tensor) -> ClassStats:
        """Return the statistics of the classes that a bool mask `[K]` selects."""
        names = tuple(name for name, selected in zip(self.class_names, mask_K.tolist(), strict=True) if selected)
        count, mass, published_mass = (tuple(x_KW[mask_K] for x_KW in self.sums(each)) for each in STATISTICS)
        return ClassStats(self.site_names, names, self.num_images[mask_K], count, mass, published_mass, self.settings)

    def _load_sums(self) -> None:
        """Replace sums on disk by float64 copies in memory, which can be added to."""
        self.count, self.mass, self.published_mass = (
            tuple(x_KW.double() for x_KW in x_L) if isinstance(x_L, StoredSums) else x_L
            for x_L in map(self.sums, STATISTICS)
        )

    def __add__(self, other: ClassStats) -> ClassStats:
        """Return the statistics of both sets of images. Raises `ValueError` for other sites, classes or settings."""
        check_same_mining(self, other)
        count, mass, published_mass = (
            tuple(own_KW + other_KW for own_KW, other_KW in zip(self.sums(each), other.sums(each), strict=True))
            for each in STATISTICS
        )
        return replace(
            self,
            num_images=self.num_images + other.num_images,
            count=count,
            mass=mass,
            published_mass=published_mass,
        )

    @property
    def widths(self) -> dict[str, int]:
        """The number of neurons of every site."""
        return {site: count_KW.shape[1] for site, count_KW in zip(self.site_names, self.count, strict=True)}

    @property
    def empty_classes(self) -> list[int]:
        """The classes without images."""
        return (self.num_images == 0).nonzero().flatten().tolist()

    def sums(self, statistic: str) -> Sequence[Tensor]:
        """Return `count`, `mass` or `published-mass`, summed over the images of a class: per layer `[K, W_l]`.

        Raises `ValueError` for an unknown statistic.
        """
        if statistic not in STATISTICS:
            raise ValueError(f"unknown class statistic {statistic!r}; choose from {', '.join(STATISTICS)}")
        return {"count": self.count, "mass": self.mass, "published-mass": self.published_mass}[statistic]

    def means(self, statistic: str) -> Iterator[Tensor]:
        """Yield `sums` divided by the number of images: per layer float64 `[K, W_l]`, zero for `empty_classes`.

        Raises `ValueError` for an unknown statistic.
        """
        num_images_K1 = self.num_images.clamp(min=1)[:, None]
        return (sums_KW.double() / num_images_K1 for sums_KW in self.sums(statistic))

    def save(self, file: Path | str) -> None:
        """Write the safetensors file atomically."""
        save_stats([(0, self)], file, widths=self.widths, class_names=self.class_names, settings=self.settings)

    @classmethod
    def load(cls, file: Path | str) -> ClassStats:
        """Open a file that `save` wrote. Raises `ValueError` for a file of another kind or schema version."""
        try:
            with safe_open(file, framework="pt") as opened:
                text = (opened.metadata() or {}).get("pathprune")
                description = read_description(text, file, "class statistics")
                num_images = opened.get_tensor("num_images").clone()
        except SafetensorError as error:
            raise ValueError(f"{file} does not hold class statistics: {error}") from error
        count, mass, published_mass = (
            StoredSums.open(Path(file).absolute(), (f"{statistic}.{site}" for site in description.site_names))
            for statistic in STATISTICS
        )
        return cls(
            site_names=description.site_names,
            class_names=description.class_names,
            num_images=num_images,
            count=count,
            mass=mass,
            published_mass=published_mass,
            settings=description.settings,
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the file, by name."""
        tensors = {"num_images": self.num_images}
        for statistic in STATISTICS:
            named = zip(self.site_names, self.sums(statistic), strict=True)
            tensors |= {f"{statistic}.{site}": sums_KW for site, sums_KW in named}
        return tensors


def add_counts(counts: Sequence[Tensor], paths_BLk: Tensor, labels_B: Tensor) -> None:
    """Add 1, in place, to `counts` (per layer `[K, W_l]`) for every neuron on an image's path, at the image's class."""
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
    """Write the statistics of all classes as one file, atomically, one block of consecutive classes at a time.

    Each block comes with its first class. Classes without a block have no images.
    """
    description = write_description(Description(tuple(widths), tuple(class_names), settings))
    empty = ClassStats.empty(widths, ()).to_tensors()
    shapes = {name: (len(class_names), *tensor.shape[1:]) for name, tensor in empty.items()}
    with write_atomically(Path(file)) as part:
        tensors = ((first_class, block.to_tensors()) for first_class, block in blocks)
        write_sums(part, shapes=shapes, description=description, blocks=tensors)
