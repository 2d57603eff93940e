"""`pathprune inspect`: the questions that the paper asks of paths, put to the recipe's model (arXiv 2503.09046).

Everything is seen on the images that are mined, with their labels: it explains the model, and tests nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from pathprune.data import LabelledImages, make_loader, sample_balanced
from pathprune.inspection import (
    class_order,
    effects_of_scaling,
    most_exciting,
    most_used,
    random_paths,
    shared_neurons,
)
from pathprune.keys import key_of
from pathprune.mining import METHODS, ClassStats, path_scores
from pathprune.models.adapt import model_device
from pathprune.progress import TrackedBatches
from pathprune.recipe import Recipe
from pathprune.report.inspection import Findings, NeuronView, inspection_page
from pathprune.report.page import Picture
from pathprune.report.render import write_page
from pathprune.scoring.criteria import Tokens
from pathprune.stages.experiment import Experiment

FACTORS = {"removed": 0.0, "enhanced": 2.0}
_THUMBNAIL = 64  # pixels of the longer side


@dataclass(frozen=True)
class Inspection:
    """What was found, and the page that shows it."""

    findings: Findings
    page: Path
    is_main_process: bool


def inspect_recipe(recipe: Recipe, *, overwrite: bool = False) -> Inspection:
    """Inspect the recipe's model; what the run folder holds already is not computed again. Writes `inspect.html`."""
    experiment = Experiment(recipe, overwrite=overwrite)
    tokens: Tokens = "class" if experiment.adapted.readout else "all"
    stats = experiment.mined(tokens)  # by all processes
    with experiment.main_first():
        findings = Findings(
            name=recipe.name,
            tokens=tokens,
            class_names=stats.class_names,
            measured=_measured(experiment, tokens),
            shared=(shared := shared_neurons(stats.count, stats.num_images, size=recipe.mine.top_k)),
            class_order=class_order(shared),
            num_mined=int(stats.num_images.sum()),
            neurons=_neurons(experiment, tokens, stats),
        )
    file = experiment.folder.path / "inspect.html"
    if experiment.folder.main:
        write_page(inspection_page(findings), file)
    return Inspection(findings, file, experiment.folder.main)


def _measured(experiment: Experiment, tokens: Tokens) -> dict[str, Tensor]:
    """JAS and effects of every kind of path, image by image: `<kind>.jas`, `<kind>.removed.probability` … `[N]`.

    Kinds are the mining methods and `random`; of random paths, the mean over several for each image.
    """
    recipe = experiment.recipe
    images = sample_balanced(experiment.splits.images("mine"), num_images=recipe.inspect.num_images, seed=recipe.seed)
    key = key_of(
        mining=experiment.mining.key(tokens),
        num_images=len(images),
        random_paths=recipe.inspect.random_paths,
        seed=recipe.seed,
        factors=FACTORS,
    )
    return experiment.folder.artifact(
        "inspect/measured.safetensors",
        key=key,
        make=lambda: _measure(experiment, images, tokens),
        save=save_file,
        load=load_file,
    )


def _measure(experiment: Experiment, images: LabelledImages, tokens: Tokens) -> dict[str, Tensor]:
    recipe, adapted, mining = experiment.recipe, experiment.adapted, experiment.mining
    batch_size = 16 if recipe.mine.batch_size == "auto" else recipe.mine.batch_size
    rows = adapted.readout if tokens == "class" else None
    generator = torch.Generator().manual_seed(recipe.seed)
    nodes, _ = mining.nodes(tokens)
    device = model_device(adapted.model)
    parts: list[dict[str, Tensor]] = []

    def effects(pixels: Tensor, targets: Tensor, paths_BLk: Tensor) -> dict[str, Tensor]:
        found = effects_of_scaling(
            adapted, pixels, targets, paths_BLk, factors=tuple(FACTORS.values()), objective=mining.objective, rows=rows
        )
        named = dict(zip(FACTORS, found, strict=True))
        probability = {f"{name}.probability": each.probability for name, each in named.items()}
        return probability | {f"{name}.correct": each.correct for name, each in named.items()}

    loader = make_loader(images, batch_size=batch_size, num_workers=recipe.data.num_workers)
    for batch, labels in TrackedBatches(loader, "inspecting paths", len(images)):
        pixels = batch.to(device)
        part: dict[str, Tensor] = {}
        for method in METHODS:
            mined = mining.locate(pixels, labels, tokens, method=method)
            found = {"jas": mined.jas.cpu().double(), **effects(pixels, mined.targets, mined.paths)}
            part |= {f"{method}.{name}": value for name, value in found.items()}
        draws: list[dict[str, Tensor]] = []
        targets = mined.targets if (mined.targets >= 0).all() else None
        for _ in range(recipe.inspect.random_paths):
            widths = [site.width for site in adapted.sites]
            paths = random_paths(widths, num_images=len(batch), size=recipe.mine.top_k, generator=generator)
            jas = path_scores(
                adapted,
                pixels,
                paths[:, :, 0],
                targets,
                rule=recipe.mine.rule,
                nodes=nodes,
                tokens=tokens,
                objective=mining.objective,
            )
            draws.append({"jas": jas.cpu().double(), **effects(pixels, mined.targets, paths)})
        part |= {f"random.{name}": torch.stack([draw[name] for draw in draws]).mean(0) for name in draws[0]}
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _neurons(experiment: Experiment, tokens: Tokens, stats: ClassStats) -> list[NeuronView]:
    """The most used neurons of every block, with who uses them and what excites them."""
    config, images = experiment.recipe.inspect, experiment.splits.images("mine")
    columns = most_used(stats.count, number=config.neurons_per_block)
    watched = [layer for layer in range(len(columns)) if len(columns[layer])]
    key = key_of(
        mining=experiment.mining.key(tokens),
        columns=[layer.tolist() for layer in columns],
        number=config.images_per_neuron,
    )

    def excite() -> dict[str, Tensor]:
        loader = make_loader(images, batch_size=64, num_workers=experiment.recipe.data.num_workers)
        rows = experiment.adapted.readout if tokens == "class" else None
        batches = TrackedBatches(loader, "looking for what excites neurons", len(images))
        found = most_exciting(experiment.adapted, batches, columns, number=config.images_per_neuron, rows=rows)
        items = {f"items.{layer}": found[layer].items.contiguous() for layer in watched}
        return items | {f"activations.{layer}": found[layer].activations.contiguous() for layer in watched}

    exciting: dict[str, Tensor] = experiment.folder.artifact(
        "inspect/exciting.safetensors", key=key, make=excite, save=save_file, load=load_file
    )
    return [view for layer in watched for view in _views(layer, columns[layer], exciting, stats, images)]


def _views(
    layer: int, columns: Tensor, exciting: Mapping[str, Tensor], stats: ClassStats, images: LabelledImages
) -> Iterator[NeuronView]:
    for place, column in enumerate(columns.tolist()):
        by_class = stats.count[layer][:, column]
        users = by_class / stats.num_images.clamp(min=1)
        items = exciting[f"items.{layer}"][place].tolist()
        yield NeuronView(
            block=layer,
            neuron=column,
            share=float(by_class.sum() / stats.num_images.sum()),
            classes=[
                (stats.class_names[index], float(users[index]))
                for index in users.argsort(descending=True, stable=True)[:3].tolist()
                if users[index] > 0
            ],
            pictures=[
                Picture(thumbnail(images.decode(item)), alt=name, caption=name)
                for item in items
                for name in [_class_name(images, item)]
            ],
        )


def _class_name(images: LabelledImages, item: int) -> str:
    label = int(images.labels[item])
    return images.class_names[label] if label >= 0 else f"image {images.indices[item]}"


def thumbnail(picture: Image.Image) -> bytes:
    """A small PNG: large pictures shrunk, those of a few pixels enlarged without smoothing."""
    longer = max(picture.size)
    if longer > _THUMBNAIL:
        picture = picture.copy()
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    else:
        factor = _THUMBNAIL // longer
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()
