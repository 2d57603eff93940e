"""Cost of a model: parameters, multiply-accumulates per image, bytes on disk."""

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
    """Return the number of parameters; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, image_size: int | tuple[int, int], *, num_channels: int = 3) -> int:
    """Return the multiply-accumulates for one image.

    Counts matrix products and convolutions, QKᵀ and AV of attention included. As is usual, biases, norms, activations
    and softmax do not count.
    """
    return _count_macs_by_module(model, image_size, num_channels)["Global"]


def mlp_mac_share(model: nn.Module, image_size: int | tuple[int, int], *, num_channels: int = 3) -> float:
    """Return the fraction of `count_macs` in MLPs with neuron sites: the most that pruning neurons can save."""
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
    """Return the model's cost, by `count_params` or `count_macs`, and the cost of one neuron at each site."""
    if kind == "params":
        per_neuron = {site.name: _count_neuron_params(site) for site in adapted.sites}
        return Cost(float(count_params(adapted.model)), per_neuron)
    macs = _count_macs_by_module(adapted.model, image_size, num_channels)
    names = {module: f"{type(adapted.model).__name__}.{name}" for name, module in adapted.model.named_modules()}
    per_neuron = {}
    for site in adapted.sites:
        # A layer may have output rows that belong to no neuron: count the cost of one row.
        into = sum(macs[names[up.layer]] / up.layer.out_features for up in site.ups)
        per_neuron[site.name] = into + macs[names[site.down]] / site.width
    return Cost(float(macs["Global"]), per_neuron)


def _count_neuron_params(site: NeuronSite) -> float:
    mlp = PlainMlp(site)
    shared = 0 if mlp.down.bias is None else mlp.down.bias.numel()
    return (count_params(mlp) - shared) / site.width


def size_on_disk(path: str | Path) -> int:
    """Return the bytes in a file, or in all files of a folder."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist; pass a checkpoint's file or folder")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _count_macs_by_module(model: nn.Module, image_size: int | tuple[int, int], num_channels: int) -> dict[str, int]:
    """Count multiply-accumulates by module, named `ClassName.path.to.module`, and the total under `Global`."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    weight = next(model.parameters())
    image = torch.zeros(1, num_channels, height, width, device=weight.device, dtype=weight.dtype)
    # The counter may not know a fused attention kernel; MATH runs attention as plain matrix products.
    with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        counter = FlopCounterMode(display=False)
        with counter:
            model(image)
    # FLOPs: one multiply-accumulate is two.
    return {module: sum(counts.values()) // 2 for module, counts in counter.get_flop_counts().items()}
