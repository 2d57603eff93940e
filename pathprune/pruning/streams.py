"""Calibration images side by side in the dense and the narrowed model, carried from block to block.

Both states that enter a block are kept per image, in the model's own precision on the CPU: `2 N T D` numbers whatever
the depth and the widths, 50 MB for 1,000 images of a ViT-S at 56 px, 1.2 GB for a ViT-B at 224 px.
"""

# N images, B of them in a batch, T tokens, D width of the residual stream, I inputs and O outputs of a linear layer

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathprune.models.adapt import evaluating
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.compensation import Batches
from pathprune.scoring.statistics import Moments

_EXACT = 1e-3  # share of a state that rounding may account for, in half precision too

Weights = Sequence[dict[str, Tensor]]
"""For every batch, how much each token counts `[B, T]`, by site."""


@dataclass
class _States:
    """What enters a block, `[B, T, D]`, for one batch of images."""

    dense: Tensor
    narrowed: Tensor


class Streams:
    """The states that enter `block` in the dense and the narrowed model, up to which the two are the same."""

    def __init__(self, dense: AdaptedModel, narrowed: AdaptedModel, *, block: int, batches: Batches) -> None:
        self._dense, self._narrowed = dense, narrowed
        self._states: list[_States] = []
        parameter = next(dense.model.parameters())
        self._device = parameter.device
        with evaluating(dense.model):
            for images, _ in batches:
                h_BTD = dense.stem(images.to(parameter))
                for index in range(block):
                    h_BTD = dense.close_block(index, *dense.open_block(index, h_BTD))
                self._states.append(_States(h_BTD.cpu(), h_BTD.cpu()))
        if not self._states:
            raise ValueError("compensation 'sequential' needs at least one image; there are no calibration batches")

    def attention_layers(self, block: int) -> list[str]:
        """The linear layers of a block that run before its hidden rows and hold no neurons, in order.

        Those without a bias are left out, as fits have one.
        """
        site = self._dense.sites[block]
        hold_neurons = {site.down, *(rows.layer for rows in site.rows)}
        names = {
            module: name
            for name, module in self._dense.model.named_modules()
            if isinstance(module, nn.Linear) and module not in hold_neurons and module.bias is not None
        }
        ran: list[str] = []
        handles = [module.register_forward_hook(lambda *call: ran.append(names[call[0]])) for module in names]
        try:
            with evaluating(self._dense.model):
                self._dense.open_block(block, self._states[0].dense[:1].to(self._device))
        finally:
            for handle in handles:
                handle.remove()
        return list(dict.fromkeys(ran))

    def scale_into_stream(self, block: int, layer: str) -> Tensor | None:
        """What the block multiplies a layer's output by, `[D]`, before it adds it to its state; None if it does not.

        Read off a batch: exact up to rounding where the state before the MLP is the block's own plus the scaled output.
        """
        state = self._states[0]
        with evaluating(self._dense.model), _watching(self._dense.model.get_submodule(layer)) as seen:
            m_BTD, _ = self._dense.open_block(block, state.dense.to(self._device))
        out_BTD = seen[-1][1].cpu()
        if not m_BTD.shape == state.dense.shape == out_BTD.shape:  # such as where the block merges patches
            return None
        added_BTD = m_BTD.cpu() - state.dense
        exact_ND, out_ND = (each.flatten(0, -2).to(torch.float64) for each in (added_BTD, out_BTD))
        scale_D = (exact_ND * out_ND).sum(0) / out_ND.square().sum(0).clamp(min=torch.finfo(torch.float64).tiny)
        rest = (exact_ND - scale_D * out_ND).norm() / exact_ND.norm().clamp(min=torch.finfo(torch.float64).tiny)
        return scale_D if float(rest) < _EXACT else None

    def layer_moments(self, block: int, layer: str, *, into_stream: bool = False) -> list[Moments]:
        """Moments of the rows `[I + O]` of a linear layer that runs before the block's hidden rows, by half.

        Inputs are those of the narrowed model, outputs those of the dense model for its own inputs; or, `into_stream`,
        what the block should add to the narrowed state for the MLP to see the dense model's.
        """

        def rows(state: _States) -> Tensor:
            with _watching(self._narrowed.model.get_submodule(layer)) as narrow:
                self._narrowed.open_block(block, state.narrowed.to(self._device))
            with _watching(self._dense.model.get_submodule(layer)) as wide:
                m_BTD, _ = self._dense.open_block(block, state.dense.to(self._device))
            wanted = m_BTD - state.narrowed.to(self._device) if into_stream else wide[-1][1]
            return torch.cat([narrow[-1][0], wanted], dim=-1)

        return self._moments(block, rows)

    def down_moments(self, block: int, weights: Weights | None) -> list[Moments]:
        """Moments of the rows `[K + D]`, by half: kept hidden rows, and what `down` should add to the stream.

        That is the dense model's own block output less the narrowed state before the MLP. Moves the dense states to
        the block's output.
        """

        def rows(state: _States) -> Tensor:
            opened = self._dense.open_block(block, state.dense.to(self._device))
            h_BTD = self._dense.close_block(block, *opened)
            m_BTD, u_BTK = self._narrowed.open_block(block, state.narrowed.to(self._device))
            state.dense = h_BTD.cpu()
            return torch.cat([u_BTK, h_BTD - m_BTD], dim=-1)

        name = self._dense.sites[block].name
        return self._moments(block, rows, None if weights is None else [each[name] for each in weights])

    def advance(self, block: int) -> None:
        """Move the narrowed states to the block's output."""
        with evaluating(self._narrowed.model):
            for state in self._states:
                opened = self._narrowed.open_block(block, state.narrowed.to(self._device))
                state.narrowed = self._narrowed.close_block(block, *opened).cpu()

    def _moments(
        self, block: int, rows_of: Callable[[_States], Tensor], weights: Sequence[Tensor] | None = None
    ) -> list[Moments]:
        """Moments of the even and of the odd images' rows; a single image has no odd ones."""
        halves: list[Moments | None] = [None, None]
        num_images = 0
        for index, state in enumerate(self._states):
            with evaluating(self._dense.model), evaluating(self._narrowed.model):
                rows = rows_of(state)
            per_image = rows.reshape(len(state.dense), -1, rows.shape[-1])
            for parity in (0, 1):
                chosen = slice((parity - num_images) % 2, None, 2)
                weight = None if weights is None else weights[index][chosen].flatten()
                found = per_image[chosen].flatten(0, -2)
                if len(found):
                    moments = Moments.of(found, covariance=True, weights=weight)
                    known = halves[parity]
                    halves[parity] = moments if known is None else known.merge(moments)
            num_images += len(state.dense)
        made = [half for half in halves if half is not None]
        if not all(half.mean.isfinite().all() for half in made):
            raise ValueError(
                f"block {block}: activations are NaN or infinite while fitting; check the images' normalisation, or "
                "run the model in float32"
            )
        return made


@contextmanager
def _watching(layer: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """While open, every forward through `layer` adds its input and output."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = layer.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    try:
        yield seen
    finally:
        handle.remove()
