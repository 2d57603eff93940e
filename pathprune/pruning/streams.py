"""Calibration images in the dense and the pruned model at once, advanced block by block.

Four states per image stay on the CPU in the model's precision: `4 N T D` numbers, whatever the depth and the widths.
This is 100 MB for 1,000 images of a ViT-S at 56 px, and 2.4 GB for a ViT-B at 224 px.
"""

# N images, B images of a batch, T tokens, R tokens of a batch, D hidden dimension of the residual stream,
# K kept neurons, I inputs and O outputs of a linear layer

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathprune.models.adapt import evaluating
from pathprune.models.hooks import attach_hooks
from pathprune.models.seam import AdaptedModel
from pathprune.scoring.batches import Batches
from pathprune.scoring.moments import Moments

_ROUNDING = 1e-3  # largest relative error that counts as rounding, also in half precision

Weights = Sequence[dict[str, Tensor]]
"""Weight of every token `[B, T]` by site, for every batch."""


@dataclass(frozen=True)
class _BlockStates:
    """States `[B, T, D]` of one batch at a block, on the CPU."""

    dense: Tensor  # enters the block in the dense model
    dense_before_mlp: Tensor
    dense_output: Tensor
    pruned: Tensor  # enters the block in the pruned model


class Streams:
    """States of the calibration images at one block of the dense and the pruned model.

    Both models must be equal before the first `block`.
    """

    def __init__(self, dense: AdaptedModel, pruned: AdaptedModel, *, block: int, batches: Batches) -> None:
        self._dense, self._pruned, self._block = dense, pruned, block
        self._states: list[_BlockStates] = []
        parameter = next(dense.model.parameters())
        self._device = parameter.device
        with evaluating(dense.model):
            for images, _ in batches:
                h_BTD = dense.stem(images.to(parameter))
                for index in range(block):
                    h_BTD = dense.run_block(index, h_BTD)
                self._states.append(self._run_dense_block(h_BTD, h_BTD))
        if not self._states:
            raise ValueError(
                "compensation 'sequential' needs at least one image, but there are no calibration batches; pass images"
            )

    def advance(self) -> None:
        """Advance all images to the next block."""
        block, self._block = self._block, self._block + 1
        with evaluating(self._dense.model), evaluating(self._pruned.model):
            for index, state in enumerate(self._states):
                pruned_BTD = self._pruned.run_block(block, state.pruned.to(self._device))
                self._states[index] = self._run_dense_block(state.dense_output.to(self._device), pruned_BTD)

    def _run_dense_block(self, dense_BTD: Tensor, pruned_BTD: Tensor) -> _BlockStates:
        m_BTD, u_BTW = self._dense.open_block(self._block, dense_BTD)
        output_BTD = self._dense.close_block(self._block, m_BTD, u_BTW)
        return _BlockStates(dense_BTD.cpu(), m_BTD.cpu(), output_BTD.cpu(), pruned_BTD.cpu())

    def list_attention_layers(self) -> list[str]:
        """Return the names of the block's linear layers that run before its hidden activations, in order.

        Layers that compute neurons and layers without a bias are left out; fits need a bias.
        """
        site = self._dense.sites[self._block]
        neuron_layers = {site.down, *(up.layer for up in site.ups)}
        names = {
            module: name
            for name, module in self._dense.model.named_modules()
            if isinstance(module, nn.Linear) and module not in neuron_layers and module.bias is not None
        }
        calls: list[str] = []
        with (
            evaluating(self._dense.model),
            attach_hooks(layer.register_forward_hook(lambda *call: calls.append(names[call[0]])) for layer in names),
        ):
            self._dense.open_block(self._block, self._states[0].dense[:1].to(self._device))
        return list(dict.fromkeys(calls))

    def measure_stream_scale(self, layer: str) -> Tensor | None:
        """Return the factors `[D]` with which the block adds a layer's output to the residual stream.

        None if the state before the MLP is not the block's input plus the scaled output. Measured on the first batch,
        so exact up to rounding.
        """
        state = self._states[0]
        _, out_BTD = (x.cpu() for x in self._run_to(self._dense, layer, state.dense))
        # shapes differ where the block merges patches
        if not state.dense_before_mlp.shape == state.dense.shape == out_BTD.shape:
            return None
        added_BTD = state.dense_before_mlp - state.dense
        added_RD, out_RD = (x_BTD.flatten(0, -2).to(torch.float64) for x_BTD in (added_BTD, out_BTD))
        tiny = torch.finfo(torch.float64).tiny
        scale_D = (added_RD * out_RD).sum(0) / out_RD.square().sum(0).clamp(min=tiny)
        error = (added_RD - scale_D * out_RD).norm() / added_RD.norm().clamp(min=tiny)
        return scale_D if float(error) < _ROUNDING else None

    def collect_layer_moments(
        self, layer: str, *, is_residual: bool = False, narrowing: Tensor | None = None
    ) -> list[Moments]:
        """Return moments of a linear layer's inputs and targets, rows `[I + O]`, from each half of the images.

        The layer runs before the block's hidden activations. Inputs are those in the pruned model. Targets are the
        layer's outputs in the dense model. With `is_residual`, targets are what the pruned block must add to its input
        state to reach the dense model's state before the MLP. `narrowing` `[O, dense O]` maps the dense outputs to
        those of a narrower layer. Covariances are `[I + O, I]`.
        """

        def run(state: _BlockStates) -> tuple[Tensor, Tensor]:
            inputs_BTI, _ = self._run_to(self._pruned, layer, state.pruned)
            if is_residual:
                return inputs_BTI, (state.dense_before_mlp - state.pruned).to(self._device)
            outputs_BTO = self._run_to(self._dense, layer, state.dense)[1]
            return inputs_BTI, outputs_BTO if narrowing is None else outputs_BTO @ narrowing.to(outputs_BTO).T

        return self._collect_moments(run)

    def collect_down_moments(self, weights: Weights | None = None) -> list[Moments]:
        """Return moments of the down-projection's inputs and targets, rows `[K + D]`, from each half of the images.

        Inputs are the pruned model's hidden activations. Targets are what the MLP must add to the pruned state before
        it to reach the dense block output. Covariances are `[K + D, K]`.
        """

        def run(state: _BlockStates) -> tuple[Tensor, Tensor]:
            m_BTD, u_BTK = self._pruned.open_block(self._block, state.pruned.to(self._device))
            return u_BTK, state.dense_output.to(self._device) - m_BTD

        name = self._dense.sites[self._block].name
        return self._collect_moments(run, None if weights is None else [batch[name] for batch in weights])

    def collect_mlp_states(self) -> tuple[Tensor, Tensor]:
        """Return the inputs of the pruned MLP and its targets: `[N, T, D]` each, on the CPU.

        Targets are those of `collect_down_moments`.
        """
        layer = self._pruned.sites[self._block].ups[0].layer
        inputs, targets = [], []
        with evaluating(self._pruned.model), _record_calls(layer) as calls:
            for state in self._states:
                m_BTD, _ = self._pruned.open_block(self._block, state.pruned.to(self._device))
                inputs.append(calls.pop()[0].cpu())
                targets.append(state.dense_output - m_BTD.cpu())
        return torch.cat(inputs), torch.cat(targets)

    def _run_to(self, adapted: AdaptedModel, layer: str, state_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Run the block up to a layer; return the layer's input and output."""
        module = adapted.model.get_submodule(layer)
        with evaluating(adapted.model), _record_calls(module, stop=True) as calls, suppress(_LayerReachedError):
            adapted.open_block(self._block, state_BTD.to(self._device))
        return calls[0]

    def _collect_moments(
        self, run: Callable[[_BlockStates], tuple[Tensor, Tensor]], weights: Sequence[Tensor] | None = None
    ) -> list[Moments]:
        """Return the moments of the inputs and targets that `run` gives, of even images and, if any, of odd images."""
        halves: list[Moments | None] = [None, None]
        num_images = 0
        for index, state in enumerate(self._states):
            with evaluating(self._dense.model), evaluating(self._pruned.model):
                inputs, targets = run(state)
            rows = torch.cat([inputs, targets], dim=-1)
            per_image = rows.reshape(len(state.dense), -1, rows.shape[-1])
            for parity in (0, 1):
                chosen = slice((parity - num_images) % 2, None, 2)
                weights_R = None if weights is None else weights[index][chosen].flatten()
                chosen_rows = per_image[chosen].flatten(0, -2)
                if len(chosen_rows):
                    moments = Moments.from_rows(chosen_rows, covariance=inputs.shape[-1], weights=weights_R)
                    half = halves[parity]
                    halves[parity] = moments if half is None else half.merge(moments)
            num_images += len(state.dense)
        moments_by_half = [half for half in halves if half is not None]
        if not all(half.mean.isfinite().all() for half in moments_by_half):
            raise ValueError(
                f"block {self._block}: activations are NaN or infinite while fitting; check the images' normalisation, "
                "or run the model in float32"
            )
        return moments_by_half


class _LayerReachedError(Exception):
    """Signal that ends a forward pass early."""


@contextmanager
def _record_calls(layer: nn.Module, *, stop: bool = False) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record the input and output of every call of `layer` inside the context; `stop` ends the first forward there."""
    calls: list[tuple[Tensor, Tensor]] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((args[0], output))
        if stop:
            raise _LayerReachedError

    with attach_hooks([layer.register_forward_hook(hook)]):
        yield calls
