"""The model card of a pruned checkpoint: Markdown for the hub, rendered from `config.json` alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData

from pathprune.models.adapt import adapt
from pathprune.models.pruned_config import PrunedConfig

_LOAD_WITH_PATHPRUNE = """\
```python
import pathprune

model = pathprune.load_pruned("path/to/this/folder")  # or owner/name
```
"""
_LOAD_WITH_LIBRARY = {
    "timm": """\
All blocks have the same number of neurons, so timm can load the model by itself, and so can Transformers through timm:

```python
model = timm.create_model("local-dir:path/to/this/folder", pretrained=True)  # or hf-hub:owner/name
model = AutoModelForImageClassification.from_pretrained("path/to/this/folder")
```
""",
    "transformers": """\
All blocks have the same number of neurons, so Transformers can load the model by itself:

```python
model = transformers.{name}.from_pretrained("path/to/this/folder")
```
""",
}
_LIBRARY_CANNOT_LOAD = {
    "timm": """\
timm has one `mlp_ratio` for all MLPs and cannot build this model by itself. pathprune's deployment guide,
docs/deploying.md, has a loader of a few lines that needs only torch, timm and safetensors.
""",
    "transformers": """\
Transformers has one MLP width for all blocks, in DINOv2's config an integer multiple of the hidden size, and cannot
build this model by itself. pathprune's deployment guide, docs/deploying.md, has a loader of a few lines that needs only
torch, Transformers and safetensors.
""",
}


@dataclass(frozen=True)
class _TableRow:
    heading: str
    dense: str
    pruned: str


def render_card(config: PrunedConfig, *, name: str, library_loads: bool) -> str:
    """Return the text of the card; `library_loads` says if the model's own library can load the checkpoint."""
    parts = [
        f"---\n{_render_header(config, name)}\n---\n",
        f"# {name}\n",
        f"{_render_summary(config)}\n",
        _render_table(config),
        f"## How to load it\n\n{_render_loading(config, library_loads)}",
        f"## How it was made\n\n{_render_provenance(config)}",
        f"## Licence\n\n{_render_license(config)}",
    ]
    return "\n".join(parts)


def _render_header(config: PrunedConfig, name: str) -> str:
    results = []
    if config.metrics:
        data = config.metrics.get("data", {})
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_name=str(data.get("source", "unknown")),
                dataset_type=str(data.get("source", "unknown")),
                dataset_split=data.get("split"),
                metric_type="accuracy",
                metric_value=config.metrics["pruned"]["top1"],
            )
        ]
    header = ModelCardData(
        model_name=name,
        library_name="pathprune",
        pipeline_tag="image-classification",
        tags=["pathprune", config.base.library, "vision-transformer", "structured-pruning"],
        base_model=config.base_model,
        license=config.license,
        eval_results=results,
        ignore_metadata_errors=True,
    )
    return header.to_yaml()


def _render_summary(config: PrunedConfig) -> str:
    removed = 1 - sum(config.widths.values()) / sum(_count_dense_neurons(config))
    if not removed:
        return f"`{config.base.name}`, not pruned."
    return (
        f"`{config.base.name}` with {removed:.1%} of its MLP neurons removed by pathprune: an ordinary model with "
        "narrower layers, without masks."
    )


def _render_table(config: PrunedConfig) -> str:
    widths = list(config.widths.values())
    rows = [_TableRow("MLP neurons", f"{sum(_count_dense_neurons(config)):,}", f"{sum(widths):,}")]
    note = "Not evaluated yet: `pathprune run` adds accuracies to this table."
    if config.metrics:
        pruned = config.metrics["pruned"]
        dense = config.metrics.get("dense", pruned)
        rows = [*_render_accuracies(dense, pruned), *rows, *_render_costs(dense, pruned)]
        data = config.metrics.get("data", {})
        note = (
            f"{pruned['num_images']:,} images of `{data.get('source', 'unknown')}` (`{data.get('split', 'unknown')}`), "
            "none of them used for mining or calibration; 95 % intervals."
        )
    lines = ["| | dense | this model |", "|---|---|---|", *("| " + " | ".join(astuple(row)) + " |" for row in rows)]
    return "\n".join(lines) + f"\n\n{note}\n\nNeurons by block: {_render_widths(widths)}.\n"


def _render_accuracies(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> Iterator[_TableRow]:
    yield _TableRow("top-1 %", *(_render_percent(row["top1"], row["top1_ci"]) for row in (dense, pruned)))
    yield _TableRow("retention %", "100", _render_percent(pruned["retention"], pruned["retention_ci"]))


def _render_costs(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> Iterator[_TableRow]:
    for key, heading in (("num_params", "parameters"), ("macs", "multiply-accumulates per image")):
        yield _TableRow(heading, *(f"{row[key] / 1e6:,.2f} M" for row in (dense, pruned)))
    if pruned.get("latency_ms") is not None:
        yield _TableRow(
            f"latency of a batch of {pruned['latency_batch_size']}",
            f"{dense['latency_ms']:.1f} ms",
            f"{pruned['latency_ms']:.1f} ms ({pruned['speedup']:.2f}× faster)",
        )


def _render_loading(config: PrunedConfig, library_loads: bool) -> str:
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in config.data_config.items()}
    texts = _LOAD_WITH_LIBRARY if library_loads else _LIBRARY_CANNOT_LOAD
    with_library = texts[config.base.library].format(name=config.base.name)
    return f"{_LOAD_WITH_PATHPRUNE}\n{with_library}\nPreprocessing: `timm.data.create_transform` with `{settings}`.\n"


def _render_provenance(config: PrunedConfig) -> str:
    short = {key: value for key, value in config.provenance.items() if not isinstance(value, list)}
    if not short:
        return "Not recorded.\n"
    content = yaml.safe_dump(short, sort_keys=False, allow_unicode=True)
    return f"```yaml\n{content}```\n"


def _render_license(config: PrunedConfig) -> str:
    base = f" of [{config.base_model}](https://huggingface.co/{config.base_model})" if config.base_model else ""
    if config.license:
        return f"{config.license}, as the dense weights{base}.\n"
    return f"That of the dense weights{base}, which the checkpoint does not state.\n"


def _count_dense_neurons(config: PrunedConfig) -> list[int]:
    """Return the number of neurons of the dense model at each site."""
    with torch.device("meta"):
        dense = config.base.build(data_config=config.data_config, class_names=config.class_names)
    return [site.width for site in adapt(dense, check=False).sites]


def _render_widths(widths: Sequence[int]) -> str:
    return str(widths[0]) + " each" if len(set(widths)) == 1 else ", ".join(map(str, widths))


def _render_percent(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
