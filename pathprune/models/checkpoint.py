"""Pruned models on disk: `model.safetensors`, a `config.json` and a model card, loaded without running them.

`config.json` names the dense architecture (a timm name and arguments, or a Transformers class and its config), the
width kept at every site, the input and the class names. Neither library has a width per block, so a model is built
dense, narrowed, and then filled.
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
from pathprune.models.adapt import adapt, evaluating, model_device
from pathprune.models.architecture import Architecture, class_names_of, data_config_of
from pathprune.models.card import model_card
from pathprune.models.graph import narrow
from pathprune.models.hub import local_folder
from pathprune.models.native import library_keys
from pathprune.models.pruned_config import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    PrunedConfig,
    is_pruned_folder,
    native_keys,
    read_pruned_config,
    write_pruned_config,
)
from pathprune.models.transformers_vit import unwrapped
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
    """Write `model`, pruned or not, to `folder`, with a model card; returns the folder.

    `architecture` is needed for models that `timm.create_model` did not make: a timm name or `{"name", "args"}` whose
    model differs in MLP widths only. `data_config` and `class_names` default to the model's own; `kept` gives the kept
    columns of the dense model by site. `base_model` is the hub name of the dense weights and `license` that of these;
    `provenance` is any JSON, and `metrics` two rows of `metrics.jsonl`, by `dense` and `pruned`.

    What was written is loaded and must give the model's logits before it takes its place, all at once. Replaces an
    earlier checkpoint of this format; any other content of `folder` is refused.
    """
    folder = Path(folder)
    _check_replaceable(folder)
    adapted = adapt(model, check=False)
    model = adapted.model  # a Transformers model in what makes logits of its answers
    names = tuple(class_names) if class_names is not None else class_names_of(model)
    if names is not None and len(names) != adapted.num_classes:
        raise CheckpointError(f"got {len(names)} class names for {adapted.num_classes} classes; give one for each")
    tensors, tied = _stored_tensors(unwrapped(model))
    config = PrunedConfig(
        base=Architecture.of(model) if architecture is None else Architecture.parse(architecture),
        widths={site.name: site.width for site in adapted.sites},
        data_config=data_config_of(model) if data_config is None else data_config,
        class_names=names,
        kept=None if kept is None else _checked_kept(kept, {site.name: site.width for site in adapted.sites}),
        tied=tied,
        base_model=base_model,
        license=license,
        provenance=provenance or {},
        metrics=metrics,
    )
    native = library_keys(model, config, tensors=tensors)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder) as part:
        part.mkdir()
        write_pruned_config(part, config, native=native)
        save_file(tensors, part / WEIGHTS_FILE, metadata={"format": "pt"})
        _check_reload(model, part, config, folder)
        write_text(part / CARD_FILE, model_card(config, name=folder.name, loads_alone=bool(native)))
    return folder


def describe_pruned(folder: str | Path, **changes: Any) -> None:
    """Change what a checkpoint and its card say: `base_model`, `license`, `provenance`, `metrics`.

    Nothing is written where nothing changes, so that a card that was edited stays as it is.
    """
    folder = Path(folder)
    config = read_pruned_config(folder)
    changed = replace(config, **changes)
    if changed != config:
        native = native_keys(folder)
        write_pruned_config(folder, changed, native=native)
        write_text(folder / CARD_FILE, model_card(changed, name=folder.name, loads_alone=bool(native)))


def load_pruned(folder: str | Path) -> nn.Module:
    """Load what `save_pruned` wrote: on the CPU, in eval mode, with the dtypes that it was saved in.

    `folder` is a folder, or the name of a repository on the hub: `owner/name`, `hf-hub:owner/name@revision`. Raises
    `CheckpointError` (a `ValueError`) for other formats and versions, and for files that do not belong together.
    """
    folder = local_folder(folder)
    config = read_pruned_config(folder)
    state = read_weights(folder / WEIGHTS_FILE, unwrap=False)
    state.update({name: state[source] for name, source in config.tied.items() if source in state})
    model = config.base.build(data_config=config.data_config, class_names=config.class_names)
    _narrow(model, config.widths, state, folder)
    stored = unwrapped(model)
    _tie(stored, config.tied, folder)
    for name, tensor in (*stored.named_parameters(), *stored.named_buffers()):
        if name in state:
            tensor.data = tensor.data.to(state[name].dtype)
    fill_weights(
        stored,
        state,
        source=str(folder / WEIGHTS_FILE),
        advice=f"{CONFIG_FILE} or the weights are not as they were saved",
    )
    return model


def _check_replaceable(folder: Path) -> None:
    if folder.is_dir():
        ours = is_pruned_folder(folder) and {file.name for file in folder.iterdir()} <= {
            CONFIG_FILE,
            WEIGHTS_FILE,
            CARD_FILE,
        }
        if not ours and any(folder.iterdir()):
            raise CheckpointError(f"{folder} holds files that are no pruned checkpoint's; choose a new or empty folder")
    elif folder.exists():
        raise CheckpointError(f"{folder} is a file; choose a new or empty folder")


def _checked_kept(kept: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, list[int]]:
    if {site: len(columns) for site, columns in kept.items()} != dict(widths):
        raise CheckpointError(
            "the kept columns are not as many as the model has neurons; pass those of this model's plan"
        )
    return {site: columns.tolist() for site, columns in kept.items()}


def _stored_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to write, each with memory of its own, and the names of tied parameters that are left out."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = (tensor.clone() if memory in seen else tensor).contiguous().cpu()
        seen.add(memory)
    return tensors, tied


def _check_reload(model: nn.Module, written: Path, config: PrunedConfig, folder: Path) -> None:
    """Refuse a checkpoint that does not give the model's own logits: its architecture is not the model's."""
    advice = (
        'pass architecture={"name": a timm name, "args": {...}} with which timm.create_model makes a model that '
        f"differs in MLP widths only (tried: {config.base.name} with {dict(config.base.args)})"
        if config.base.library == "timm"
        else f"pass the architecture of a model that differs in MLP widths only (tried: a {config.base.name})"
    )
    try:
        again = load_pruned(written)
    except CheckpointError as error:
        reason = str(error).replace(str(written), str(folder))
        raise CheckpointError(f"the model cannot be saved: {reason}; {advice}") from error
    shape = (2, *config.data_config["input_size"])
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(next(again.parameters()).dtype)
    # accelerators may choose kernels of other precision from one call to the next: compare on the CPU
    original = model if model_device(model).type == "cpu" else copy.deepcopy(model).cpu()
    with evaluating(original), torch.inference_mode():
        logits, reloaded = original(images), again(images)
    # not bit by bit: kernels may round otherwise for weights that surgery left with other strides
    tolerance = 64 * torch.finfo(logits.dtype).eps * float(logits.abs().nan_to_num().max())
    if not torch.allclose(reloaded, logits, rtol=0, atol=tolerance, equal_nan=True):
        raise CheckpointError(f"the model cannot be saved: built again it gives other logits; {advice}")


def _narrow(model: nn.Module, widths: Mapping[str, int], state: Mapping[str, Tensor], folder: Path) -> None:
    """Replace the layers around every site by layers of its width, in place, with weights still to be filled in."""
    sites = {site.name: site for site in adapt(model, check=False).sites}
    if sites.keys() != widths.keys():
        raise CheckpointError(
            f"{folder}: {CONFIG_FILE} gives widths for {len(widths)} sites, the model has {len(sites)}; they differ in "
            f"{', '.join(sorted(sites.keys() ^ widths.keys())[:3])}"
        )
    names = {module: name for name, module in unwrapped(model).named_modules()}
    for name, width in widths.items():
        stored = state.get(f"{names[sites[name].down]}.weight")
        if stored is None or stored.ndim != 2 or stored.shape[1] != width:
            found = "no such weight" if stored is None else f"a weight {list(stored.shape)}"
            raise CheckpointError(
                f"{folder}: {CONFIG_FILE} gives {name} {width!r} neurons, {WEIGHTS_FILE} holds {found}; "
                "the two files do not belong together"
            )
        narrow(sites[name], width)


def _tie(model: nn.Module, tied: Mapping[str, str], folder: Path) -> None:
    for name, source in tied.items():
        owner, _, attribute = name.rpartition(".")
        try:
            model.get_parameter(name)
            setattr(model.get_submodule(owner), attribute, model.get_parameter(source))
        except AttributeError as error:
            raise CheckpointError(f"{folder}: {CONFIG_FILE} ties {name} to {source}: {error}") from error
