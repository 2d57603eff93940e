"""The joint attribution of neuron paths (arXiv 2503.09046): integrals over α, with the clamped prefix carried along.

Layers are clamped one after the other, and nothing before block `l + 1` changes once the neurons of layer `l` are
chosen. So a `Prefix` holds, for every node α, the state at which block `l` is open, and that state's derivative along
"+1 on every clamped value of every chosen neuron". One backward pass from the objective to the prefix then yields both
the gradient of every neuron of layer `l` and the summed gradient of all neurons chosen before it.
"""

# B images, M nodes, N = M·B rows (one image at one node; nodes outermost), T tokens, R clamped tokens, D channels,
# W neurons of a layer, k neurons chosen in a layer, L layers

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pathprune.mining.forward_mode import Tensors, jvp
from pathprune.mining.objectives import Readout
from pathprune.models.precision import Passes
from pathprune.models.seam import AdaptedModel


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype of softmax, sums and scores for a model that computes in `dtype`."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class CleanPass:
    """One forward pass with nothing clamped: block 0 as it opens, the values that clamping starts from, the output."""

    opened: tuple[Tensor, Tensor]  # m [B, T, D] and u [B, T, W_0] of block 0
    values: tuple[Tensor, ...]  # a_l [B, R, W_l], the clamped tokens' hidden rows of every layer
    output_BK: Tensor


@dataclass(frozen=True)
class Prefix:
    """The model with every layer before `block` clamped at its chosen neurons, and `block` open for its own values.

    `state` is what those values have no part in: `m` of `open_block` at the clamped tokens `[N, R, D]`; and, where
    other tokens have gone past them, `h` `[N, T, D]` of the next block and what it reads of each of them `[N, T, ·]`.
    There, the clamped tokens' rows are still to be put in. `tangent` is its derivative along +1 on every chosen value.
    """

    block: int
    state: tuple[Tensor, ...]
    tangent: tuple[Tensor, ...]


@dataclass(frozen=True)
class JointAttribution:
    """The integrals ∫ ∂p/∂v dα of one batch of images, where layers of `adapted` are clamped to `v(α)`.

    `rows` are the clamped tokens, `readout` those that the head reads; None for all of them. `passes` makes the
    context that block passes run in.
    """

    adapted: AdaptedModel
    objective: Readout
    clean: CleanPass
    alpha_M: Tensor
    weight_M: Tensor
    rows: Tensor | None
    readout: Tensor | None
    passes: Passes

    def start(self) -> Prefix:
        """Block 0 opened, nothing clamped: the same at every node."""
        rows = self._rows_read_from(0)
        with self.passes():
            opened = self._passed_by(0, *(part if rows is None else part[:, rows] for part in self.clean.opened))
        state = tuple(part.repeat(len(self.alpha_M), 1, 1) for part in opened)
        return Prefix(0, state, tuple(map(torch.zeros_like, state)))

    def layer_gradients(self, prefix: Prefix) -> tuple[Tensor, Tensor]:
        """Clamp all of `prefix.block` to α·a: its own gradients ∫ ∂p/∂v `[B, R, W]`, and those of all neurons
        chosen before it, summed, `[B]`.
        """
        v = (self.alpha_M[:, None, None, None] * self.clean.values[prefix.block]).flatten(0, 1).requires_grad_()
        state = [part.detach().requires_grad_() for part in prefix.state]
        with torch.enable_grad(), self.passes():
            p_N = self._suffix(prefix.block, v, *state)
            grad_v, *grads = torch.autograd.grad(p_N.sum(), (v, *state), materialize_grads=True)
        earlier_N = torch.stack([_products(*pair, dtype=v.dtype) for pair in zip(grads, prefix.tangent, strict=True)])
        return self.integrated(grad_v), self.integrated(earlier_N.sum(0))

    def advance(self, prefix: Prefix, chosen_Bk: Tensor) -> Prefix:
        """Clamp `prefix.block` to a, with the chosen neurons at α·a, and open the next block."""
        block = prefix.block

        def to_next_block(v: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            return self._passed_by(block + 1, *self._open_next(block, v, *state))

        return Prefix(block + 1, *self._along_path(to_next_block, prefix, chosen_Bk))

    def path_gradient(self, prefix: Prefix, chosen_Bk: Tensor) -> Tensor:
        """Clamp the last layer like the layers before it: ∫ Σ ∂p/∂v over all chosen neurons of all layers, `[B]`."""

        def to_objective(v: Tensor, *state: Tensor) -> Tensor:
            return self._suffix(prefix.block, v, *state)

        _, dp_N = self._along_path(to_objective, prefix, chosen_Bk)
        return self.integrated(dp_N)

    def path_activation(self, chosen_LBk: list[Tensor]) -> Tensor:
        """Σ a over the chosen neurons of the first `len(chosen_LBk)` layers, `[B]`."""
        total_B = self.clean.values[0].new_zeros(len(self.clean.values[0]))
        for a_BRW, chosen_Bk in zip(self.clean.values, chosen_LBk, strict=False):
            total_B = total_B + a_BRW.sum(1).gather(1, chosen_Bk).sum(1)
        return total_B

    def joint_score(self, path_BL: Tensor) -> Tensor:
        """The JAS of a path with one neuron in every layer: `[B, L]` -> `[B]`."""
        chosen = list(path_BL.T.unsqueeze(-1))
        prefix = self.start()
        for chosen_B1 in chosen[:-1]:
            prefix = self.advance(prefix, chosen_B1)
        return self.path_activation(chosen) * self.path_gradient(prefix, chosen[-1])

    def value(self, h: Tensor) -> Tensor:
        """The objective at the last block's output: `[N, T, D]` -> `[N]`."""
        output = self.adapted.head(h)
        output_of_node = output.to(at_least_float32(output.dtype)).chunk(len(self.alpha_M))
        return torch.cat([self.objective(output_BK) for output_BK in output_of_node])

    def integrated(self, integrand: Tensor) -> Tensor:
        """The weighted sum over nodes: `[N, …]` -> `[B, …]`."""
        at_node = torch.stack(integrand.chunk(len(self.weight_M)))
        return (self.weight_M.view(-1, *[1] * integrand.ndim) * at_node).sum(0)

    def _suffix(self, block: int, v: Tensor, *state: Tensor) -> Tensor:
        """From a `Prefix`'s state at `block`, clamped to `v` `[N, R, W]`, to the objective `[N]`."""
        last = len(self.adapted.sites) - 1
        if block == last:
            return self.value(self._clamped(block, v, state[0]))
        h = self.adapted.close_block(block + 1, *self._open_next(block, v, *state))
        for later in range(block + 2, last + 1):
            h = self.adapted.run_block(later, h, self._rows_read_from(later))
        return self.value(h)

    def _open_next(self, block: int, v: Tensor, m: Tensor, *passed: Tensor) -> tuple[Tensor, Tensor]:
        """Close `block`, clamped to `v`, and open the one after it."""
        following, rows = block + 1, self._rows_read_from(block + 1)
        h_NRD = self._clamped(block, v, m)
        if self.rows is None:
            return self.adapted.open_block(following, h_NRD, rows)
        h, read = passed
        h = h.index_copy(1, self.rows, h_NRD.to(h.dtype))
        read = read.index_copy(1, self.rows, self.adapted.read_block(following, h_NRD, rows).to(read.dtype))
        return self.adapted.open_block(following, h, rows, read=read)

    def _clamped(self, block: int, v_NRW: Tensor, m: Tensor) -> Tensor:
        """Close `block` for the clamped tokens, as far as something reads them."""
        read = self._rows_read_from(block)
        v = v_NRW if read is None or self.rows is not None else v_NRW[:, read]
        return self.adapted.close_block(block, m, v.to(m.dtype))

    def _passed_by(self, block: int, m: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        """The state of a `Prefix` at `block`: tokens that are not clamped go past the values that will be."""
        last = block == len(self.adapted.sites) - 1
        if self.rows is None or last:
            return (m,)
        h = self.adapted.close_block(block, m, u)
        return m[:, self.rows], h, self.adapted.read_block(block + 1, h, self._rows_read_from(block + 1))

    def _rows_read_from(self, block: int) -> Tensor | None:
        """The rows of a block's results that something later reads; None for all of them."""
        return self.readout if block == len(self.adapted.sites) - 1 else None

    def _along_path(
        self, function: Callable[..., Tensors], prefix: Prefix, chosen_Bk: Tensor
    ) -> tuple[Tensors, Tensors]:
        """`function(v, *state)` with the chosen neurons of the open block clamped too, and its derivative along the
        path.
        """
        a_BRW = self.clean.values[prefix.block]
        chosen_BW = torch.zeros_like(a_BRW[:, 0], dtype=torch.bool).scatter(1, chosen_Bk, True)
        chosen_BRW = chosen_BW[:, None].expand_as(a_BRW)
        v = torch.where(chosen_BRW, self.alpha_M[:, None, None, None] * a_BRW, a_BRW).flatten(0, 1)
        dv = chosen_BRW.repeat(len(self.alpha_M), 1, 1).to(v.dtype)
        with self.passes():
            return jvp(function, (v, *prefix.state), (dv, *prefix.tangent))


def _products(x_N: Tensor, y_N: Tensor, *, dtype: torch.dtype) -> Tensor:
    """The inner product of every row of the batch, `[N, …]` and `[N, …]` -> `[N]`."""
    return (x_N.to(dtype) * y_N.to(dtype)).flatten(1).sum(1)
