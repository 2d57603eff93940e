"""`pathprune inspect`: the paper's questions about neuron paths, asked of the recipe's model (arXiv 2503.09046).

All images are the mined ones, with their labels: the result explains the model and does not test it.
"""

# B images of a batch, L layers, k neurons of a layer on a path

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from pathprune.artifacts import ArtifactKind, Codec
from pathprune.data import LabelledImages, make_loader, sample_balanced
from pathprune.inspection import (
    SCALING_FACTORS,
    Effects,
    PathKind,
    PathMeasure,
    PathMeasures,
    TopImages,
    draw_random_paths,
    find_most_used,
    find_top_images,
    measure_effects,
    measure_overlap,
    order_classes,
)
from pathprune.mining import METHODS, ClassStats, Tokens, score_paths
from pathprune.models.adapt import find_device
from pathprune.progress import TrackedBatches
from pathprune.recipe import Recipe
from pathprune.report.findings import Findings, NeuronView
from pathprune.report.inspection import build_inspection_page
from pathprune.report.page import Picture
from pathprune.report.render import write_page
from pathprune.stages.experiment import Experiment, open_experiment


def _save_top_images(top_images: Mapping[int, TopImages], file: Path) -> None:
    tensors = {f"items.{layer}": each.items.contiguous() for layer, each in top_images.items()}
    tensors |= {f"activations.{layer}": each.activations.contiguous() for layer, each in top_images.items()}
    save_file(tensors, file)


def _load_top_images(file: Path) -> dict[int, TopImages]:
    tensors = load_file(file)
    layers = sorted(int(name.removeprefix("items.")) for name in tensors if name.startswith("items."))
    return {layer: TopImages(tensors[f"items.{layer}"], tensors[f"activations.{layer}"]) for layer in layers}


MEASURES: ArtifactKind[PathMeasures] = ArtifactKind(
    "inspect/measured.safetensors",
    inputs=("mining", "num_images", "random_paths", "seed", "factors"),
    codec=Codec(
        lambda measures, file: save_file(measures.to_tensors(), file),
        lambda file: PathMeasures.from_tensors(load_file(file)),
    ),
)
TOP_IMAGES: ArtifactKind[dict[int, TopImages]] = ArtifactKind(
    "inspect/exciting.safetensors",
    inputs=("mining", "columns", "number"),
    codec=Codec(_save_top_images, _load_top_images),
)
THUMBNAIL_SIZE = 64  # pixels of the longer side


@dataclass(frozen=True)
class Inspection:
    """Findings of an inspection, and the page that shows them."""

    findings: Findings
    page: Path
    is_main_process: bool


def inspect_recipe(recipe: Recipe, *, overwrite: bool = False) -> Inspection:
    """Inspect the recipe's model and write `inspect.html`; reuse the results that the run folder already holds."""
    experiment = open_experiment(recipe, overwrite=overwrite)
    tokens: Tokens = "class" if experiment.context.model.adapted.readout else "all"
    stats = experiment.mining.stats(tokens)  # by all processes
    with experiment.context.main_first():
        overlap_CC = measure_overlap(stats.count, stats.num_images, top_k=recipe.mine.top_k)
        findings = Findings(
            name=recipe.name,
            tokens=tokens,
            class_names=stats.class_names,
            measures=_load_measures(experiment, tokens),
            overlap_CC=overlap_CC,
            class_order=order_classes(overlap_CC),
            num_mined=int(stats.num_images.sum()),
            neurons=_view_neurons(experiment, tokens, stats),
        )
    file = experiment.folder.path / "inspect.html"
    if experiment.folder.main:
        write_page(build_inspection_page(findings), file)
    return Inspection(findings, file, experiment.folder.main)


def _load_measures(experiment: Experiment, tokens: Tokens) -> PathMeasures:
    """Return the measurements of every kind of path, from the run folder if they are there."""
    recipe = experiment.recipe
    images = sample_balanced(experiment.mining.sample.images, num_images=recipe.inspect.num_images, seed=recipe.seed)
    artifact = MEASURES.of(
        mining=experiment.mining.artifact(tokens).key,
        num_images=len(images),
        random_paths=recipe.inspect.random_paths,
        seed=recipe.seed,
        factors=SCALING_FACTORS,
    )
    return experiment.folder.obtain(artifact, lambda: _measure_paths(experiment, images, tokens))


def _measure_paths(experiment: Experiment, images: LabelledImages, tokens: Tokens) -> PathMeasures:
    """Measure every kind of path on `images`; for random paths, the mean over several per image."""
    recipe, mining = experiment.recipe, experiment.mining
    adapted, objective = experiment.context.model.adapted, experiment.context.model.objective
    batch_size = 16 if recipe.mine.batch_size == "auto" else recipe.mine.batch_size
    widths = [site.width for site in adapted.sites]
    generator = torch.Generator().manual_seed(recipe.seed)
    nodes, _ = mining.nodes(tokens)
    device = find_device(adapted.model)
    parts: list[PathMeasures] = []

    def measure(pixels: Tensor, targets: Tensor, paths_BLk: Tensor, jas_B: Tensor) -> PathMeasure:
        effects = measure_effects(
            adapted,
            pixels,
            targets,
            paths_BLk,
            factors=tuple(SCALING_FACTORS.values()),
            objective=objective,
            token_indices=_token_indices(experiment, tokens),
        )
        by_name: dict[str, Effects] = dict(zip(SCALING_FACTORS, effects, strict=True))
        return PathMeasure(jas_B.cpu().double(), removed=by_name["removed"], enhanced=by_name["enhanced"])

    loader = make_loader(images, batch_size=batch_size, num_workers=recipe.data.num_workers)
    for batch, labels in TrackedBatches(loader, "inspecting paths", len(images)):
        pixels = batch.to(device)
        by_kind: dict[PathKind, PathMeasure] = {}
        for method in METHODS:
            mined = mining.locate(pixels, labels, tokens, method=method)
            by_kind[method] = measure(pixels, mined.targets, mined.paths, mined.jas)
        targets = mined.targets if (mined.targets >= 0).all() else None
        random: list[PathMeasure] = []
        for _ in range(recipe.inspect.random_paths):
            paths_BLk = draw_random_paths(widths, num_images=len(batch), top_k=recipe.mine.top_k, generator=generator)
            jas_B = score_paths(
                adapted,
                pixels,
                paths_BLk[:, :, 0],
                targets,
                rule=recipe.mine.rule,
                nodes=nodes,
                tokens=tokens,
                objective=objective,
            )
            random.append(measure(pixels, mined.targets, paths_BLk, jas_B))
        by_kind["random"] = PathMeasure.mean(random)
        parts.append(PathMeasures(by_kind))
    return PathMeasures.concat(parts)


def _token_indices(experiment: Experiment, tokens: Tokens) -> tuple[int, ...] | None:
    """Return the tokens that paths are about; None: all tokens."""
    return experiment.context.model.adapted.readout if tokens == "class" else None


def _view_neurons(experiment: Experiment, tokens: Tokens, stats: ClassStats) -> list[NeuronView]:
    """Return views of the most used neurons of every block: the classes that use them and the images they look for."""
    config, images = experiment.recipe.inspect, experiment.mining.sample.images
    columns = find_most_used(stats.count, number=config.neurons_per_block)
    watched = [layer for layer in range(len(columns)) if len(columns[layer])]
    artifact = TOP_IMAGES.of(
        mining=experiment.mining.artifact(tokens).key,
        columns=[layer.tolist() for layer in columns],
        number=config.images_per_neuron,
    )

    def find() -> dict[int, TopImages]:
        loader = make_loader(images, batch_size=64, num_workers=experiment.recipe.data.num_workers)
        batches = TrackedBatches(loader, "finding the images that activate neurons most", len(images))
        top_images = find_top_images(
            experiment.context.model.adapted,
            batches,
            columns,
            number=config.images_per_neuron,
            token_indices=_token_indices(experiment, tokens),
        )
        return {layer: top_images[layer] for layer in watched}

    top_images = experiment.folder.obtain(artifact, find)
    return [view for layer in watched for view in _view_layer(layer, columns[layer], top_images[layer], stats, images)]


def _view_layer(
    layer: int, columns: Tensor, top_images: TopImages, stats: ClassStats, images: LabelledImages
) -> Iterator[NeuronView]:
    for place, column in enumerate(columns.tolist()):
        users_C = stats.count[layer][:, column]
        share_C = users_C / stats.num_images.clamp(min=1)
        yield NeuronView(
            block=layer,
            neuron=column,
            share=float(users_C.sum() / stats.num_images.sum()),
            classes=[
                (stats.class_names[index], float(share_C[index]))
                for index in share_C.argsort(descending=True, stable=True)[:3].tolist()
                if share_C[index] > 0
            ],
            pictures=[
                Picture(thumbnail(images.decode(item)), alt=name, caption=name)
                for item in top_images.items[place].tolist()
                for name in [_class_name(images, item)]
            ],
        )


def _class_name(images: LabelledImages, item: int) -> str:
    label = int(images.labels[item])
    return images.class_names[label] if label >= 0 else f"image {images.indices[item]}"


def thumbnail(picture: Image.Image) -> bytes:
    """Return a small PNG: large pictures shrunk, pictures of a few pixels enlarged without smoothing."""
    longer = max(picture.size)
    if longer > THUMBNAIL_SIZE:
        picture = picture.copy()
        picture.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    else:
        factor = THUMBNAIL_SIZE // longer
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()
