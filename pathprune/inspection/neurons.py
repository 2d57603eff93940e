"""Most used neurons of paths, and the images that activate the neurons most."""

# B images of a batch, C classes, T tokens, W neurons of a layer, n watched neurons of a layer, m kept images per neuron

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathprune.models.adapt import evaluating, find_device
from pathprune.models.hooks import attach_hooks
from pathprune.models.seam import AdaptedModel


@dataclass(frozen=True)
class TopImages:
    """Images with the highest activation of each watched neuron of a layer, best first: `[n, m]` both."""

    items: Tensor  # int64, positions in the order of the batches
    activations: Tensor  # float64

    def merge(self, activations_nB: Tensor, *, start: int, number: int) -> TopImages:
        """Return the best `number` of these images and of a batch that begins with item `start`."""
        items_nB = torch.arange(start, start + activations_nB.shape[1]).expand_as(activations_nB)
        activations = torch.cat([self.activations, activations_nB], 1)
        items = torch.cat([self.items, items_nB], 1)
        order = activations.sort(dim=1, descending=True, stable=True).indices[:, :number]
        return TopImages(items.gather(1, order), activations.gather(1, order))


def find_most_used(counts: Sequence[Tensor], *, number: int) -> list[Tensor]:
    """Return, for every layer, the columns that most images have on their path: `[C, W_l]` -> int64 `[<= number]`.

    The most used column comes first, of equally used columns the lower one. Columns on no path are left out.
    """
    columns = []
    for count_CW in counts:
        total_W = count_CW.double().sum(0)
        order = total_W.sort(descending=True, stable=True).indices[:number]
        columns.append(order[total_W[order] > 0])
    return columns


@torch.no_grad()
def find_top_images(
    adapted: AdaptedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    columns: Sequence[Tensor],
    *,
    number: int,
    token_indices: Sequence[int] | None = None,
) -> list[TopImages]:
    """Return, for every layer, the `number` images that activate each of its `columns` (int64 `[n]`) most.

    An image's activation is the maximum over the tokens `token_indices`; None: over all tokens. Every batch
    `(images [B, C, H, W], labels)` runs once, and no more than `number` images per neuron are kept in memory.
    """
    best = [TopImages(torch.zeros(len(c), 0, dtype=torch.int64), torch.zeros(len(c), 0).double()) for c in columns]
    device = find_device(adapted.model)
    start = 0

    def build_hook(layer: int, columns_n: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            activation_BTn = args[0].index_select(-1, columns_n.to(args[0].device))
            if token_indices is not None:
                activation_BTn = activation_BTn[:, list(token_indices)]
            best[layer] = best[layer].merge(activation_BTn.amax(1).T.cpu().double(), start=start, number=number)

        return hook

    hooks = (
        site.down.register_forward_pre_hook(build_hook(layer, columns[layer]))
        for layer, site in enumerate(adapted.sites)
    )
    with evaluating(adapted.model), attach_hooks(hooks):
        for images, _ in batches:
            adapted.model(images.to(device))
            start += len(images)
    return best
