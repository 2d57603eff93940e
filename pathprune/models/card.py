"""The model card of a pruned checkpoint: Markdown that the hub shows, made from `config.json` alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData

from pathprune.models.adapt import adapt
from pathprune.models.pruned_config import PrunedConfig

_BY_PATHPRUNE = """\
```python
import pathprune

model = pathprune.load_pruned("path/to/this/folder")  # or owner/name
```
"""
_ALONE = {
    "timm": """\
Every block kept as many neurons as the others, so that timm can load it on its own, and Transformers through timm:

```python
model = timm.create_model("local-dir:path/to/this/folder", pretrained=True)  # or hf-hub:owner/name
model = AutoModelForImageClassification.from_pretrained("path/to/this/folder")
```
""",
    "transformers": """\
Every block kept as many neurons as the others, so that Transformers can load it on its own:

```python
model = transformers.{name}.from_pretrained("path/to/this/folder")
```
""",
}
_NOT_ALONE = {
    "timm": """\
timm has one `mlp_ratio` for all MLPs and cannot build this model by itself; a loader of a few lines that needs torch,
timm and safetensors alone is in pathprune's guide to deploying, docs/deploying.md.
""",
    "transformers": """\
Transformers has one width for all MLPs, in DINOv2's config a whole multiple of the hidden size, and cannot build this
model by itself; a loader of a few lines that needs torch, Transformers and safetensors alone is in pathprune's guide to
deploying, docs/deploying.md.
""",
}


def model_card(config: PrunedConfig, *, name: str, loads_alone: bool) -> str:
    """The card's text. `loads_alone` tells whether the model's own library can load the checkpoint too."""
    parts = [
        f"---\n{_header(config, name)}\n---\n",
        f"# {name}\n",
        f"{_summary(config)}\n",
        _table(config),
        f"## How to load it\n\n{_loading(config, loads_alone)}",
        f"## How it was made\n\n{_provenance(config)}",
        f"## Licence\n\n{_license(config)}",
    ]
    return "\n".join(parts)


def _header(config: PrunedConfig, name: str) -> str:
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


def _summary(config: PrunedConfig) -> str:
    dense, kept = _dense_widths(config), sum(config.widths.values())
    removed = 1 - kept / sum(dense)
    if not removed:
        return f"`{config.base.name}`, not pruned."
    return (
        f"`{config.base.name}` with {removed:.1%} of its MLP neurons removed by pathprune: an ordinary, narrower "
        "model, no masks."
    )


def _table(config: PrunedConfig) -> str:
    widths = list(config.widths.values())
    rows: list[tuple[str, str, str]] = [("MLP neurons", f"{sum(_dense_widths(config)):,}", f"{sum(widths):,}")]
    note = "Not evaluated yet: `pathprune run` adds accuracies to this table."
    if config.metrics:
        pruned = config.metrics["pruned"]
        dense = config.metrics.get("dense", pruned)
        rows = [*_accuracies(dense, pruned), *rows, *_costs(dense, pruned)]
        data = config.metrics.get("data", {})
        note = (
            f"{pruned['num_images']:,} images of `{data.get('source', 'unknown')}` (`{data.get('split', 'unknown')}`), "
            "none of which was mined or calibrated on; 95 % intervals."
        )
    lines = ["| | dense | this model |", "|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(lines) + f"\n\n{note}\n\nNeurons by block: {_runs(widths)}.\n"


def _accuracies(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield "top-1 %", _percent(dense["top1"], dense["top1_ci"]), _percent(pruned["top1"], pruned["top1_ci"])
    yield "retention %", "100", _percent(pruned["retention"], pruned["retention_ci"])


def _costs(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for key, heading, unit in (("num_params", "parameters", 1e6), ("macs", "multiply-accumulates per image", 1e6)):
        yield heading, f"{dense[key] / unit:,.2f} M", f"{pruned[key] / unit:,.2f} M"
    if pruned.get("latency_ms") is not None:
        yield (
            f"latency of a batch of {pruned['latency_batch_size']}",
            f"{dense['latency_ms']:.1f} ms",
            f"{pruned['latency_ms']:.1f} ms ({pruned['speedup']:.2f}× faster)",
        )


def _loading(config: PrunedConfig, loads_alone: bool) -> str:
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in config.data_config.items()}
    other = (_ALONE if loads_alone else _NOT_ALONE)[config.base.library].format(name=config.base.name)
    return f"{_BY_PATHPRUNE}\n{other}\nInput: `timm.data.create_transform` with `{settings}`.\n"


def _provenance(config: PrunedConfig) -> str:
    said = {key: value for key, value in config.provenance.items() if not isinstance(value, list)}  # no long records
    if not said:
        return "Not said.\n"
    content = yaml.safe_dump(said, sort_keys=False, allow_unicode=True)
    return f"```yaml\n{content}```\n"


def _license(config: PrunedConfig) -> str:
    base = f" [{config.base_model}](https://huggingface.co/{config.base_model})" if config.base_model else ""
    if config.license:
        return f"{config.license}, as the dense weights{base and f' of{base}'}.\n"
    return f"That of the dense weights{base and f' of{base}'}, which the checkpoint does not say.\n"


def _dense_widths(config: PrunedConfig) -> list[int]:
    with torch.device("meta"):
        dense = config.base.build(data_config=config.data_config, class_names=config.class_names)
    return [site.width for site in adapt(dense, check=False).sites]


def _runs(widths: Sequence[int]) -> str:
    return str(widths[0]) + " each" if len(set(widths)) == 1 else ", ".join(map(str, widths))


def _percent(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
