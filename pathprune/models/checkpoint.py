"""Pruned models on disk: `model.safetensors`, `config.json` and a model card, loaded without running code from them.

`config.json` names the dense architecture (a timm name and arguments, or a Transformers class and its config), the
width of every site, the preprocessing and the class names. Neither library supports a width per block, so a model is
built dense, narrowed, and then filled with the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pathprune.files import write_atomically, write_text
from pathprune.models.adapt import adapt, evaluating, find_device
from pathprune.models.architecture import Architecture, read_class_names, read_data_config
from pathprune.models.card import render_card
from pathprune.models.graph import narrow_mlp
from pathprune.models.hub import fetch_folder
from pathprune.models.native import find_native_keys
from pathprune.models.pruned_config import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    PrunedConfig,
    is_pruned_folder,
    read_native_keys,
    read_pruned_config,
    write_pruned_config,
)
from pathprune.models.seam import AdaptedModel
from pathprune.models.transformers_vit import unwrap
from pathprune.models.weights import CheckpointError, fill_weights, read_weights


def save_pruned(
    model: nn.Module,
    folder: str | Path,
    architecture: Architecture | Mapping[str, Any] | str | None = None,
    *,
    data_config: Mapping[str, Any] | None = None,
    class_names: Iterable[str] | None = None,
    kept: Mapping[str, Tensor] | None = None,
    base_model: str | None = None,
    license: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Write `model`, pruned or not, with a model card to `folder` and return the folder.

    - architecture: needed only if `timm.create_model` did not build the model: a timm name or `{"name": …, "args": …}`
      of a model that differs in MLP widths only.
    - data_config, class_names: by default the model's own.
    - kept: the kept columns of the dense model by site.
    - base_model, license: hub name of the dense weights, and their licence.
    - provenance: any JSON data.
    - metrics: rows of `metrics.jsonl` under `dense` and `pruned`.

    An earlier checkpoint in `folder` is replaced atomically. Raises `CheckpointError` if `folder` holds anything else,
    or if the written checkpoint, loaded again, does not give the model's logits.
    """
    folder = Path(folder)
    _check_replaceable(folder)
    adapted = adapt(model, check=False)
    model = adapted.model  # a bare Transformers model is wrapped now
    tensors, tied = _collect_tensors(unwrap(model))
    config = PrunedConfig(
        base=Architecture.of(model) if architecture is None else Architecture.parse(architecture),
        widths={site.name: site.width for site in adapted.sites},
        data_config=read_data_config(model) if data_config is None else data_config,
        class_names=_check_class_names(adapted, class_names),
        kept=None if kept is None else _check_kept(adapted, kept),
        tied=tied,
        base_model=base_model,
        license=license,
        provenance=provenance or {},
        metrics=metrics,
    )
    native = find_native_keys(model, config, tensors=tensors)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder) as part:
        part.mkdir()
        write_pruned_config(part, config, native=native)
        save_file(tensors, part / WEIGHTS_FILE, metadata={"format": "pt"})
        _check_reload(model, part, config, folder)
        write_text(part / CARD_FILE, render_card(config, name=folder.name, library_loads=bool(native)))
    return folder


def describe_pruned(folder: str | Path, **changes: Any) -> None:
    """Change `base_model`, `license`, `provenance` or `metrics` of a checkpoint and render its card again.

    Without a change nothing is written, so that an edited card is kept.
    """
    folder = Path(folder)
    config = read_pruned_config(folder)
    new_config = replace(config, **changes)
    if new_config != config:
        native = read_native_keys(folder)
        write_pruned_config(folder, new_config, native=native)
        write_text(folder / CARD_FILE, render_card(new_config, name=folder.name, library_loads=bool(native)))


def load_pruned(folder: str | Path) -> nn.Module:
    """Load a checkpoint of `save_pruned` on the CPU, in eval mode, with the saved dtypes.

    `folder` is a folder or a repository on the hub: `owner/name` or `hf-hub:owner/name@revision`. Raises
    `CheckpointError`, a `ValueError`, for other formats and versions, and for files that do not belong together.
    """
    folder = fetch_folder(folder)
    config = read_pruned_config(folder)
    state = read_weights(folder / WEIGHTS_FILE, unwrap=False)
    state.update({name: state[source] for name, source in config.tied.items() if source in state})
    model = config.base.build(data_config=config.data_config, class_names=config.class_names)
    _narrow(model, config.widths, state, folder)
    inner = unwrap(model)
    _tie(inner, config.tied, folder)
    for name, tensor in (*inner.named_parameters(), *inner.named_buffers()):
        if name in state:
            tensor.data = tensor.data.to(state[name].dtype)
    fill_weights(
        inner,
        state,
        source=str(folder / WEIGHTS_FILE),
        advice=f"{CONFIG_FILE} and the weights do not belong together",
    )
    return model


def _check_replaceable(folder: Path) -> None:
    if folder.is_dir():
        names = {file.name for file in folder.iterdir()}
        is_checkpoint = is_pruned_folder(folder) and names <= {CONFIG_FILE, WEIGHTS_FILE, CARD_FILE}
        if names and not is_checkpoint:
            raise CheckpointError(
                f"{folder} holds files that do not belong to a pruned checkpoint; choose a new or empty folder"
            )
    elif folder.exists():
        raise CheckpointError(f"{folder} is a file; choose a new or empty folder")


def _check_class_names(adapted: AdaptedModel, class_names: Iterable[str] | None) -> tuple[str, ...] | None:
    """Return the given class names or the model's own; raise `CheckpointError` if their number is wrong."""
    names = read_class_names(adapted.model) if class_names is None else tuple(class_names)
    if names is not None and len(names) != adapted.num_classes:
        raise CheckpointError(
            f"got {len(names)} class names for {adapted.num_classes} classes; pass one for each class"
        )
    return names


def _check_kept(adapted: AdaptedModel, kept: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return the kept columns as lists; raise `CheckpointError` if their numbers differ from the model's widths."""
    if {site: len(columns) for site, columns in kept.items()} != {site.name: site.width for site in adapted.sites}:
        raise CheckpointError(
            "the numbers of kept columns differ from the model's widths; pass the kept columns of this model's plan"
        )
    return {site: columns.tolist() for site, columns in kept.items()}


def _collect_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors to write and a map from tied parameters, which are left out, to the parameters stored.

    safetensors refuses tensors that share memory: the second of two such tensors is copied.
    """
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    tensors: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = (tensor.clone() if memory in addresses else tensor).contiguous().cpu()
        addresses.add(memory)
    return tensors, tied


def _check_reload(model: nn.Module, part: Path, config: PrunedConfig, folder: Path) -> None:
    """Raise `CheckpointError` unless the written checkpoint gives the model's logits: the architecture may be wrong."""
    advice = (
        'pass architecture={"name": a timm name, "args": {...}} with which timm.create_model builds a model that '
        f"differs in MLP widths only (tried: {config.base.name} with {dict(config.base.args)})"
        if config.base.library == "timm"
        else f"pass the architecture of a model that differs in MLP widths only (tried: {config.base.name})"
    )
    try:
        reloaded = load_pruned(part)
    except CheckpointError as error:
        reason = str(error).replace(str(part), str(folder))
        raise CheckpointError(f"the model cannot be saved: {reason}; {advice}") from error
    shape = (2, *config.data_config["input_size"])
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(next(reloaded.parameters()).dtype)
    # accelerators may choose kernels of different precision in each call: compare on the CPU
    original = model if find_device(model).type == "cpu" else copy.deepcopy(model).cpu()
    with evaluating(original), torch.inference_mode():
        expected, logits = original(images), reloaded(images)
    # not bit by bit: surgery may leave weights with other strides, for which kernels round differently
    tolerance = 64 * torch.finfo(expected.dtype).eps * float(expected.abs().nan_to_num().max())
    if not torch.allclose(logits, expected, rtol=0, atol=tolerance, equal_nan=True):
        raise CheckpointError(f"the model cannot be saved: built again, it gives other logits; {advice}")


def _narrow(model: nn.Module, widths: Mapping[str, int], state: Mapping[str, Tensor], folder: Path) -> None:
    """Narrow the MLP of every site to its saved width, in place; the weights are still to be loaded."""
    sites = {site.name: site for site in adapt(model, check=False).sites}
    if sites.keys() != widths.keys():
        raise CheckpointError(
            f"{folder}: {CONFIG_FILE} gives widths for {len(widths)} sites, the model has {len(sites)}; they differ in "
            f"{', '.join(sorted(sites.keys() ^ widths.keys())[:3])}"
        )
    names = {module: name for name, module in unwrap(model).named_modules()}
    for name, width in widths.items():
        weight = state.get(f"{names[sites[name].down]}.weight")
        if weight is None or weight.ndim != 2 or weight.shape[1] != width:
            content = "no such weight" if weight is None else f"a weight {list(weight.shape)}"
            raise CheckpointError(
                f"{folder}: {CONFIG_FILE} gives {name} {width!r} neurons, {WEIGHTS_FILE} holds {content}; "
                "the two files do not belong together"
            )
        narrow_mlp(sites[name], width)


def _tie(model: nn.Module, tied: Mapping[str, str], folder: Path) -> None:
    """Tie parameters of the model as they were tied when it was saved, in place."""
    for name, source in tied.items():
        owner, _, attribute = name.rpartition(".")
        try:
            model.get_parameter(name)
            setattr(model.get_submodule(owner), attribute, model.get_parameter(source))
        except AttributeError as error:
            raise CheckpointError(f"{folder}: {CONFIG_FILE} ties {name} to {source}: {error}") from error
