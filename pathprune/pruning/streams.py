"""Calibration images side by side in the dense and the narrowed model, carried from block to block.

The states that enter a block are kept per image, and the dense model's before its MLP and behind it, in the model's own
precision on the CPU: `4 N T D` numbers whatever the depth and the widths, 100 MB for 1,000 images of a ViT-S at 56 px,
2.4 GB for a ViT-B at 224 px.
"""

# N images, B of them in a batch, T tokens, D width of the residual stream, I inputs and O outputs of a linear layer

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathprune.models.adapt import evaluating
from pathprune.models.hooks import attach_hooks
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.compensation import Batches
from pathprune.scoring.statistics import Moments

_EXACT = 1e-3  # share of a state that rounding may account for, in half precision too

Weights = Sequence[dict[str, Tensor]]
"""For every batch, how much each token counts `[B, T]`, by site."""


@dataclass
class _States:
    """A batch at a block: what enters it, and the dense model's before its MLP and behind it; `[B, T, D]`."""

    dense: Tensor
    narrowed: Tensor
    opened: Tensor
    closed: Tensor


class Streams:
    """The states at `block`, up to which the dense and the narrowed model are the same; `advance` goes on from it."""

    def __init__(self, dense: AdaptedModel, narrowed: AdaptedModel, *, block: int, batches: Batches) -> None:
        self._dense, self._narrowed, self._block = dense, narrowed, block
        self._states: list[_States] = []
        parameter = next(dense.model.parameters())
        self._device = parameter.device
        with evaluating(dense.model):
            for images, _ in batches:
                h_BTD = dense.stem(images.to(parameter))
                for index in range(block):
                    h_BTD = dense.run_block(index, h_BTD)
                self._states.append(self._at_block(h_BTD, h_BTD))
        if not self._states:
            raise ValueError("compensation 'sequential' needs at least one image; there are no calibration batches")

    def _at_block(self, dense_BTD: Tensor, narrowed_BTD: Tensor) -> _States:
        m_BTD, u_BTW = self._dense.open_block(self._block, dense_BTD)
        closed_BTD = self._dense.close_block(self._block, m_BTD, u_BTW)
        return _States(dense_BTD.cpu(), narrowed_BTD.cpu(), m_BTD.cpu(), closed_BTD.cpu())

    def advance(self) -> None:
        """Go on to the next block."""
        block, self._block = self._block, self._block + 1
        with evaluating(self._dense.model), evaluating(self._narrowed.model):
            for index, state in enumerate(self._states):
                narrowed_BTD = self._narrowed.run_block(block, state.narrowed.to(self._device))
                self._states[index] = self._at_block(state.closed.to(self._device), narrowed_BTD)

    def attention_layers(self) -> list[str]:
        """The linear layers of the block that run before its hidden rows and hold no neurons, in order.

        Those without a bias are left out, as fits have one.
        """
        site = self._dense.sites[self._block]
        hold_neurons = {site.down, *(up.layer for up in site.ups)}
        names = {
            module: name
            for name, module in self._dense.model.named_modules()
            if isinstance(module, nn.Linear) and module not in hold_neurons and module.bias is not None
        }
        ran: list[str] = []
        hooks = (module.register_forward_hook(lambda *call: ran.append(names[call[0]])) for module in names)
        with evaluating(self._dense.model), attach_hooks(hooks):
            self._dense.open_block(self._block, self._states[0].dense[:1].to(self._device))
        return list(dict.fromkeys(ran))

    def scale_into_stream(self, layer: str) -> Tensor | None:
        """What the block multiplies a layer's output by, `[D]`, before it adds it to its state; None if it does not.

        Read off a batch: exact up to rounding where the state before the MLP is the block's own plus the scaled output.
        """
        state = self._states[0]
        _, out_BTD = (each.cpu() for each in self._run_to(self._dense, layer, state.dense))
        if not state.opened.shape == state.dense.shape == out_BTD.shape:  # such as where the block merges patches
            return None
        exact_ND, out_ND = (each.flatten(0, -2).to(torch.float64) for each in (state.opened - state.dense, out_BTD))
        scale_D = (exact_ND * out_ND).sum(0) / out_ND.square().sum(0).clamp(min=torch.finfo(torch.float64).tiny)
        rest = (exact_ND - scale_D * out_ND).norm() / exact_ND.norm().clamp(min=torch.finfo(torch.float64).tiny)
        return scale_D if float(rest) < _EXACT else None

    def layer_moments(self, layer: str, *, into_stream: bool = False) -> list[Moments]:
        """Moments of the rows `[I + O]` of a linear layer that runs before the block's hidden rows, by half.

        Inputs are those of the narrowed model, outputs those of the dense model for its own inputs; or, `into_stream`,
        what the block should add to the narrowed state for the MLP to see the dense model's. Covariances `[I + O, I]`.
        """

        def rows(state: _States) -> tuple[Tensor, Tensor]:
            input_BTI, _ = self._run_to(self._narrowed, layer, state.narrowed)
            if into_stream:
                return input_BTI, (state.opened - state.narrowed).to(self._device)
            return input_BTI, self._run_to(self._dense, layer, state.dense)[1]

        return self._moments(rows)

    def down_moments(self, weights: Weights | None = None) -> list[Moments]:
        """Moments of the rows `[K + D]`, by half: kept hidden rows, and what `down` should add to the stream.

        That is the dense model's own block output less the narrowed state before the MLP. Covariances `[K + D, K]`.
        """

        def rows(state: _States) -> tuple[Tensor, Tensor]:
            m_BTD, u_BTK = self._narrowed.open_block(self._block, state.narrowed.to(self._device))
            return u_BTK, state.closed.to(self._device) - m_BTD

        name = self._dense.sites[self._block].name
        return self._moments(rows, None if weights is None else [each[name] for each in weights])

    def mlp_rows(self) -> tuple[Tensor, Tensor]:
        """What the narrowed MLP reads and what it should add to the stream: `[N, T, D]` both, on the CPU."""
        layer = self._narrowed.sites[self._block].ups[0].layer
        read, wanted = [], []
        with evaluating(self._narrowed.model), _watching(layer) as seen:
            for state in self._states:
                m_BTD, _ = self._narrowed.open_block(self._block, state.narrowed.to(self._device))
                read.append(seen.pop()[0].cpu())
                wanted.append(state.closed - m_BTD.cpu())
        return torch.cat(read), torch.cat(wanted)

    def _run_to(self, adapted: AdaptedModel, layer: str, state_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's input and output; what comes behind it is not run."""
        watched = adapted.model.get_submodule(layer)
        with evaluating(adapted.model), _watching(watched, stop=True) as seen, suppress(_ReachedError):
            adapted.open_block(self._block, state_BTD.to(self._device))
        return seen[0]

    def _moments(
        self, rows_of: Callable[[_States], tuple[Tensor, Tensor]], weights: Sequence[Tensor] | None = None
    ) -> list[Moments]:
        """Moments of the even and of the odd images' inputs and outputs; a single image has no odd ones."""
        halves: list[Moments | None] = [None, None]
        num_images = 0
        for index, state in enumerate(self._states):
            with evaluating(self._dense.model), evaluating(self._narrowed.model):
                inputs, outputs = rows_of(state)
            rows = torch.cat([inputs, outputs], dim=-1)
            per_image = rows.reshape(len(state.dense), -1, rows.shape[-1])
            for parity in (0, 1):
                chosen = slice((parity - num_images) % 2, None, 2)
                weight = None if weights is None else weights[index][chosen].flatten()
                found = per_image[chosen].flatten(0, -2)
                if len(found):
                    moments = Moments.of(found, covariance=inputs.shape[-1], weights=weight)
                    known = halves[parity]
                    halves[parity] = moments if known is None else known.merge(moments)
            num_images += len(state.dense)
        made = [half for half in halves if half is not None]
        if not all(half.mean.isfinite().all() for half in made):
            raise ValueError(
                f"block {self._block}: activations are NaN or infinite while fitting; check the images' normalisation, "
                "or run the model in float32"
            )
        return made


class _ReachedError(Exception):
    """A forward pass has come as far as it was wanted."""


@contextmanager
def _watching(layer: nn.Module, *, stop: bool = False) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """While open, every forward through `layer` adds its input and output, and with `stop` ends there."""
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((args[0], output))
        if stop:
            raise _ReachedError

    with attach_hooks([layer.register_forward_hook(watch)]):
        yield seen
