"""Pruned models on disk: `model.safetensors` beside a `config.json`, read back without running anything in them.

`config.json` names the dense architecture (a timm name and arguments), the width kept at every site, the input and the
class names. timm's `mlp_ratio` is one number for all blocks, so a model is built dense, narrowed, and then filled.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pathprune.files import written_whole
from pathprune.models.adapt import adapt, evaluating, model_device
from pathprune.models.architecture import Architecture, class_names_of, data_config_of
from pathprune.models.weights import CheckpointError, fill_weights, read_weights

FORMAT = "pathprune-pruned"
VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class PrunedConfig:
    """The content of `config.json`, beside `format` and `version`."""

    architecture: Architecture
    widths: Mapping[str, int]  # site -> neurons
    data_config: Mapping[str, Any]
    class_names: tuple[str, ...] | None = None
    kept: Mapping[str, list[int]] | None = None  # site -> columns of the dense model, where known
    tied: Mapping[str, str] = field(default_factory=dict)  # parameter -> the one that it is, whose tensor is stored
    provenance: Mapping[str, Any] = field(default_factory=dict)  # free-form: how the model was made


def save_pruned(
    model: nn.Module,
    folder: str | Path,
    architecture: Architecture | Mapping[str, Any] | str | None = None,
    *,
    data_config: Mapping[str, Any] | None = None,
    class_names: Iterable[str] | None = None,
    kept: Mapping[str, Tensor] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write `model`, pruned or not, to `folder`; returns the folder.

    `architecture` is needed for models that `timm.create_model` did not make: a timm name or `{"name", "args"}` whose
    model differs in MLP widths only. `data_config` and `class_names` default to the model's own; `kept` gives the kept
    columns of the dense model by site; `provenance` is any JSON.

    What was written is loaded and must give the model's logits before it takes its place, all at once. Replaces an
    earlier checkpoint of this format; any other content of `folder` is refused.
    """
    folder = Path(folder)
    _check_replaceable(folder)
    adapted = adapt(model)
    names = tuple(class_names) if class_names is not None else class_names_of(model)
    if names is not None and len(names) != adapted.num_classes:
        raise CheckpointError(f"got {len(names)} class names for {adapted.num_classes} classes; give one for each")
    tensors, tied = _stored_tensors(model)
    config = PrunedConfig(
        architecture=Architecture.of(model) if architecture is None else Architecture.parse(architecture),
        widths={site.name: site.width for site in adapted.sites},
        data_config=data_config_of(model) if data_config is None else data_config,
        class_names=names,
        kept=None if kept is None else _checked_kept(kept, {site.name: site.width for site in adapted.sites}),
        tied=tied,
        provenance=provenance or {},
    )
    try:
        text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(config)}, indent=2)
    except TypeError as error:
        raise CheckpointError(f"provenance and data_config must be plain JSON data: {error}") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(folder) as part:
        part.mkdir()
        (part / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        save_file(tensors, part / WEIGHTS_FILE, metadata={"format": "pt"})
        _check_reload(model, part, config, folder)
    return folder


def load_pruned(folder: str | Path) -> nn.Module:
    """Load what `save_pruned` wrote: on the CPU, in eval mode, with the dtypes that it was saved in.

    Raises `CheckpointError` (a `ValueError`) for other formats and versions, and for files that do not belong together.
    """
    folder = Path(folder)
    config = read_pruned_config(folder)
    state = read_weights(folder / WEIGHTS_FILE)
    state.update({name: state[source] for name, source in config.tied.items() if source in state})
    model = config.architecture.build(data_config=config.data_config, class_names=config.class_names)
    _narrow(model, config.widths, state, folder)
    _tie(model, config.tied, folder)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in state:
            tensor.data = tensor.data.to(state[name].dtype)
    fill_weights(
        model,
        state,
        source=str(folder / WEIGHTS_FILE),
        advice=f"{CONFIG_FILE} or the weights are not as they were saved",
    )
    return model


def is_pruned_folder(folder: str | Path) -> bool:
    """Whether `folder` holds a checkpoint of this format, of any version."""
    try:
        content = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def read_pruned_config(folder: str | Path) -> PrunedConfig:
    """Read and check `config.json` of a pruned checkpoint."""
    file = Path(folder) / CONFIG_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"no pruned checkpoint in {folder}: cannot read {file}") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{folder} holds no checkpoint that save_pruned wrote: {file} has no format '{FORMAT}'")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{folder} has version {content.get('version')!r} of the format, this pathprune reads version {VERSION}; "
            "load it with the pathprune that wrote it, or a newer one"
        )
    known = {each.name for each in fields(PrunedConfig)}
    values = {key: value for key, value in content.items() if key not in ("format", "version")}
    missing = {"architecture", "widths", "data_config"} - values.keys()
    if missing or values.keys() - known:
        raise CheckpointError(
            f"{file}: missing {sorted(missing)}, unknown {sorted(values.keys() - known)}; keys are {sorted(known)}"
        )
    for key in ("widths", "data_config", "tied", "provenance"):
        if not isinstance(values.get(key, {}), dict):
            raise CheckpointError(f"{file}: {key} must be an object, got {values[key]!r}")
    values["architecture"] = Architecture.parse(values["architecture"])
    if values.get("class_names") is not None:
        values["class_names"] = tuple(values["class_names"])
    values["data_config"] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["data_config"].items()}
    return PrunedConfig(**values)


def _check_replaceable(folder: Path) -> None:
    if folder.is_dir():
        ours = is_pruned_folder(folder) and {file.name for file in folder.iterdir()} <= {CONFIG_FILE, WEIGHTS_FILE}
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
        f"differs in MLP widths only (tried: {config.architecture.name} with {dict(config.architecture.args)})"
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
    sites = {site.name: site.down for site in adapt(model).sites}
    if sites.keys() != widths.keys():
        raise CheckpointError(
            f"{folder}: {CONFIG_FILE} gives widths for {len(widths)} sites, the model has {len(sites)}; they differ in "
            f"{', '.join(sorted(sites.keys() ^ widths.keys())[:3])}"
        )
    for name, width in widths.items():
        stored = state.get(f"{name}.weight")
        if stored is None or stored.ndim != 2 or stored.shape[1] != width:
            found = "no such weight" if stored is None else f"a weight {list(stored.shape)}"
            raise CheckpointError(
                f"{folder}: {CONFIG_FILE} gives {name} {width!r} neurons, {WEIGHTS_FILE} holds {found}; "
                "the two files do not belong together"
            )
        mlp: Any = model.get_submodule(name.rpartition(".")[0])
        mlp.fc1 = _empty_linear(mlp.fc1.in_features, width, bias=mlp.fc1.bias is not None)
        mlp.fc2 = _empty_linear(width, mlp.fc2.out_features, bias=mlp.fc2.bias is not None)


def _empty_linear(in_features: int, out_features: int, *, bias: bool) -> nn.Linear:
    """Make a layer without drawing random weights that would be overwritten."""
    return nn.Linear(in_features, out_features, bias=bias, device="meta").to_empty(device="cpu")


def _tie(model: nn.Module, tied: Mapping[str, str], folder: Path) -> None:
    for name, source in tied.items():
        owner, _, attribute = name.rpartition(".")
        try:
            model.get_parameter(name)
            setattr(model.get_submodule(owner), attribute, model.get_parameter(source))
        except AttributeError as error:
            raise CheckpointError(f"{folder}: {CONFIG_FILE} ties {name} to {source}: {error}") from error
