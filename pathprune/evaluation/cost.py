"""What a model costs: parameters, multiply-accumulates per image, bytes on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pathprune.models.adapt import adapt, evaluating
from pathprune.models.graph import PlainMlp
from pathprune.models.seam import AdaptedModel, NeuronSite
from pathprune.pruning.budget import Cost, CostKind


def count_params(model: nn.Module) -> int:
    """The number of parameters; a tied one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, image_size: int | tuple[int, int], *, num_channels: int = 3) -> int:
    """Multiply-accumulates of the matrix products and convolutions for one image, attention's QKᵀ and AV included.

    Biases, norms, activations and softmax are not counted, as usual.
    """
    return _macs_by_module(model, image_size, num_channels)["Global"]


def mlp_mac_share(model: nn.Module, image_size: int | tuple[int, int], *, num_channels: int = 3) -> float:
    """The fraction of `count_macs` in the MLPs that have neuron sites: the most that pruning neurons can save."""
    adapted = adapt(model, check=False)
    cost = neuron_cost(adapted, "macs", image_size, num_channels=num_channels)
    return sum(cost.per_neuron[site.name] * site.width for site in adapted.sites) / cost.total


def neuron_cost(
    adapted: AdaptedModel,
    kind: CostKind,
    image_size: int | tuple[int, int],
    *,
    num_channels: int = 3,
) -> Cost:
    """What the model costs as `count_params` or `count_macs` say, and what of it goes with each neuron of a site."""
    if kind == "params":
        return Cost(float(count_params(adapted.model)), {site.name: _params_of_neuron(site) for site in adapted.sites})
    macs = _macs_by_module(adapted.model, image_size, num_channels)
    names = {module: f"{type(adapted.model).__name__}.{name}" for name, module in adapted.model.named_modules()}
    per_neuron = {}
    for site in adapted.sites:
        # a layer may have other rows beside the neurons'
        into = sum(macs[names[up.layer]] / up.layer.out_features for up in site.ups)
        per_neuron[site.name] = into + macs[names[site.down]] / site.width
    return Cost(float(macs["Global"]), per_neuron)


def _params_of_neuron(site: NeuronSite) -> float:
    mlp = PlainMlp(site)
    shared = 0 if mlp.down.bias is None else mlp.down.bias.numel()
    return (count_params(mlp) - shared) / site.width


def size_on_disk(path: str | Path) -> int:
    """Bytes in a file, or in all files of a folder."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a checkpoint's file or folder")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _macs_by_module(model: nn.Module, image_size: int | tuple[int, int], num_channels: int) -> dict[str, int]:
    """Multiply-accumulates by module, named `ClassName.path.to.module`, and in all under `Global`."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    weight = next(model.parameters())
    image = torch.zeros(1, num_channels, height, width, device=weight.device, dtype=weight.dtype)
    # a fused attention kernel is one operation whose products the counter may not see: MATH writes them out
    with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        counter = FlopCounterMode(display=False)
        with counter:
            model(image)
    # the counter takes a multiplication and an addition as two operations
    return {module: sum(counts.values()) // 2 for module, counts in counter.get_flop_counts().items()}
