"""The neurons that paths use most, and the images that excite them most."""

# B images, T tokens, W neurons of a layer, n neurons watched in a layer, m images kept for each

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathprune.models.adapt import evaluating, model_device
from pathprune.models.hooks import attach_hooks
from pathprune.models.seam import AdaptedModel


@dataclass(frozen=True)
class Exciting:
    """For every watched neuron of a layer, the images with the highest activation, best first: `[n, m]` each."""

    items: Tensor  # int64, positions in the order of the batches
    activations: Tensor  # float64


def most_used(counts: Sequence[Tensor], *, number: int) -> list[Tensor]:
    """The columns that most images have on their path, for every layer, best first: `[C, W]` -> int64 `[<= number]`.

    Columns that are on no path are left out; of equally many images, the lower column comes first.
    """
    chosen = []
    for count_CW in counts:
        total_W = count_CW.double().sum(0)
        order = total_W.sort(descending=True, stable=True).indices[:number]
        chosen.append(order[total_W[order] > 0])
    return chosen


@torch.no_grad()
def most_exciting(
    adapted: AdaptedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    columns: Sequence[Tensor],
    *,
    number: int,
    rows: Sequence[int] | None = None,
) -> list[Exciting]:
    """Per layer, the `number` images whose highest activation, over `rows` (None: all tokens), is the largest.

    `columns` int64 `[n]` are the neurons watched in each layer. Runs every batch `(images [B, C, H, W], labels)` once,
    and keeps no more than `number` images per neuron.
    """
    best = [Exciting(torch.zeros(len(c), 0, dtype=torch.int64), torch.zeros(len(c), 0).double()) for c in columns]
    device = model_device(adapted.model)
    start = 0

    def watch(layer: int, columns_n: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen_BTn = args[0].index_select(-1, columns_n.to(args[0].device))
            seen_BTn = seen_BTn if rows is None else seen_BTn[:, list(rows)]
            best[layer] = _joined(best[layer], seen_BTn.amax(1).T.cpu().double(), start, number)

        return note

    hooks = (
        site.down.register_forward_pre_hook(watch(layer, columns[layer])) for layer, site in enumerate(adapted.sites)
    )
    with evaluating(adapted.model), attach_hooks(hooks):
        for images, _ in batches:
            adapted.model(images.to(device))
            start += len(images)
    return best


def _joined(best: Exciting, activations_nB: Tensor, start: int, number: int) -> Exciting:
    """The best of what was kept and of one more batch, whose first image is item `start`."""
    items_nB = torch.arange(start, start + activations_nB.shape[1]).expand_as(activations_nB)
    values, items = torch.cat([best.activations, activations_nB], 1), torch.cat([best.items, items_nB], 1)
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :number]
    return Exciting(items.gather(1, order), values.gather(1, order))
