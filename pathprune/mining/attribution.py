"""Joint attribution of neuron paths: integrals over α, with the clamped prefix carried along (arXiv 2503.09046).

Layers are clamped in order, and nothing before block `l + 1` changes once the neurons of layer `l` are chosen. A
`Prefix` therefore keeps, for every node α, the model's state at the open block `l` and the state's derivative along "+1
on every clamped activation of every chosen neuron". One backward pass from the objective to the prefix then gives two
results: the gradient of every neuron of layer `l`, and the sum of the gradients of all neurons chosen before.
"""

# B images, M nodes, N = M·B pairs of node and image (nodes outermost), T tokens, R clamped tokens, D channels,
# E numbers per token in `read_block`, W neurons of a layer, k neurons chosen in a layer, L layers

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathprune.mining.clean_pass import CleanPass
from pathprune.mining.forward_mode import Tensors, jvp
from pathprune.mining.objectives import ObjectiveFunction
from pathprune.mining.quadrature import Quadrature
from pathprune.models.precision import Passes
from pathprune.models.seam import AdaptedModel


def promote_to_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of softmax, sums and scores for a model that computes in `dtype`."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class BlockState:
    """State of a model at an open block: everything that does not depend on the block's clamped activations.

    `h_NTD` and `read_NTE` are None if every token is clamped, and at the last block. Their rows of clamped tokens are
    placeholders until the block is closed.
    """

    m_NRD: Tensor  # residual stream of the open block; the MLP's output is added to it
    h_NTD: Tensor | None = None  # input of the next block
    read_NTE: Tensor | None = None  # `AdaptedModel.read_block` of the next block

    def to_tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that are not None, in the order of the fields."""
        return tuple(x for x in (self.m_NRD, self.h_NTD, self.read_NTE) if x is not None)

    @classmethod
    def from_tensors(cls, tensors: Iterable[Tensor]) -> BlockState:
        """Build a state from the result of `to_tensors`."""
        return cls(*tensors)

    def map(self, function: Callable[[Tensor], Tensor]) -> BlockState:
        """Return the state with `function` applied to every tensor."""
        return BlockState.from_tensors(map(function, self.to_tensors()))


@dataclass(frozen=True)
class Prefix:
    """Model with every layer before `block` clamped at its chosen neurons, and with `block` open.

    `tangent` is the derivative of `state` along +1 on every clamped activation of every chosen neuron.
    """

    block: int
    state: BlockState
    tangent: BlockState


@dataclass(frozen=True)
class JointAttribution:
    """Integrals ∫ ∂p/∂v dα for one batch of images, where v(α) are the clamped hidden activations.

    - objective: the function p of the model's output.
    - clamped_tokens: indices of the clamped tokens; None for all tokens.
    - readout_tokens: indices of the tokens that the head reads; None for all tokens.
    - passes: a function that returns the context manager of block passes.
    """

    adapted: AdaptedModel
    objective: ObjectiveFunction
    clean: CleanPass
    quadrature: Quadrature
    clamped_tokens: Tensor | None
    readout_tokens: Tensor | None
    passes: Passes

    def start(self) -> Prefix:
        """Return the prefix with block 0 open and nothing clamped, the same at every node."""
        m_BTD, u_BTW, tokens = self.clean.first_m_BTD, self.clean.first_u_BTW, self._tokens_read_from(0)
        if tokens is not None:
            m_BTD, u_BTW = m_BTD[:, tokens], u_BTW[:, tokens]
        with self.passes():
            state = self._close_free_tokens(0, m_BTD, u_BTW)
        state = state.map(lambda x: x.repeat(len(self.quadrature.alpha_M), 1, 1))
        return Prefix(0, state, state.map(torch.zeros_like))

    def integrate_layer(self, prefix: Prefix) -> tuple[Tensor, Tensor]:
        """Clamp all neurons of `prefix.block` to α·a and integrate ∂p/∂v.

        Return the integrals of this layer's neurons `[B, R, W]`, and the sum of the integrals of all neurons chosen
        before `[B]`.
        """
        v_NRW = (self._alpha * self.clean.values[prefix.block]).flatten(0, 1).requires_grad_()
        state = prefix.state.map(lambda x: x.detach().requires_grad_())
        with torch.enable_grad(), self.passes():
            p_N = self._run_suffix(prefix.block, v_NRW, state)
            grad_NRW, *grads = torch.autograd.grad(p_N.sum(), (v_NRW, *state.to_tensors()), materialize_grads=True)
        tangents = prefix.tangent.to_tensors()
        products = [_multiply_rows(*pair, dtype=v_NRW.dtype) for pair in zip(grads, tangents, strict=True)]
        return self.integrate(grad_NRW), self.integrate(torch.stack(products).sum(0))

    def advance(self, prefix: Prefix, chosen_Bk: Tensor) -> Prefix:
        """Return the prefix of the next block: `prefix.block` clamped to a, its chosen neurons to α·a."""
        block = prefix.block

        def run_to_next_block(v_NRW: Tensor, state: BlockState) -> tuple[Tensor, ...]:
            return self._close_free_tokens(block + 1, *self._open_next(block, v_NRW, state)).to_tensors()

        values, derivatives = self._differentiate(run_to_next_block, prefix, chosen_Bk)
        return Prefix(block + 1, BlockState.from_tensors(values), BlockState.from_tensors(derivatives))

    def integrate_path(self, prefix: Prefix, chosen_Bk: Tensor) -> Tensor:
        """Clamp the last layer like the layers before, and return ∫ Σ ∂p/∂v over all chosen neurons `[B]`."""

        def run_to_objective(v_NRW: Tensor, state: BlockState) -> Tensor:
            return self._run_suffix(prefix.block, v_NRW, state)

        _, derivative_N = self._differentiate(run_to_objective, prefix, chosen_Bk)
        return self.integrate(derivative_N)

    def sum_activations(self, chosen: Sequence[Tensor]) -> Tensor:
        """Return Σ a over the chosen neurons: `[B, k]` for each of the first layers -> `[B]`."""
        total_B = self.clean.values[0].new_zeros(len(self.clean.values[0]))
        for a_BRW, chosen_Bk in zip(self.clean.values, chosen, strict=False):
            total_B = total_B + a_BRW.sum(1).gather(1, chosen_Bk).sum(1)
        return total_B

    def score_path(self, path_BL: Tensor) -> Tensor:
        """Return the joint attribution score of a path with one neuron in every layer: int64 `[B, L]` -> `[B]`."""
        chosen = list(path_BL.T.unsqueeze(-1))
        prefix = self.start()
        for chosen_B1 in chosen[:-1]:
            prefix = self.advance(prefix, chosen_B1)
        return self.sum_activations(chosen) * self.integrate_path(prefix, chosen[-1])

    def evaluate_objective(self, h_NTD: Tensor) -> Tensor:
        """Return the objective at the last block's output: `[N, T, D]` -> `[N]`."""
        output_NK = self.adapted.head(h_NTD)
        output_of_node = output_NK.to(promote_to_float32(output_NK.dtype)).chunk(len(self.quadrature.alpha_M))
        return torch.cat([self.objective(output_BK) for output_BK in output_of_node])

    def integrate(self, integrand: Tensor) -> Tensor:
        """Return the weighted sum over nodes: `[N, …]` -> `[B, …]`."""
        weight_M = self.quadrature.weight_M
        at_node = torch.stack(integrand.chunk(len(weight_M)))
        return (weight_M.view(-1, *[1] * integrand.ndim) * at_node).sum(0)

    @property
    def _alpha(self) -> Tensor:
        """The nodes, `[M, 1, 1, 1]`."""
        return self.quadrature.alpha_M[:, None, None, None]

    def _run_suffix(self, block: int, v_NRW: Tensor, state: BlockState) -> Tensor:
        """Run from the open `block`, clamped to `v_NRW`, to the objective `[N]`."""
        last = len(self.adapted.sites) - 1
        if block == last:
            return self.evaluate_objective(self._close_clamped_tokens(block, v_NRW, state))
        h_NTD = self.adapted.close_block(block + 1, *self._open_next(block, v_NRW, state))
        for later in range(block + 2, last + 1):
            h_NTD = self.adapted.run_block(later, h_NTD, self._tokens_read_from(later))
        return self.evaluate_objective(h_NTD)

    def _open_next(self, block: int, v_NRW: Tensor, state: BlockState) -> tuple[Tensor, Tensor]:
        """Close `block`, clamped to `v_NRW`, and return the next block opened."""
        tokens = self._tokens_read_from(block + 1)
        h_NRD = self._close_clamped_tokens(block, v_NRW, state)
        if self.clamped_tokens is None:
            return self.adapted.open_block(block + 1, h_NRD, tokens)
        assert state.h_NTD is not None
        assert state.read_NTE is not None
        read_NRE = self.adapted.read_block(block + 1, h_NRD, tokens)
        h_NTD = state.h_NTD.index_copy(1, self.clamped_tokens, h_NRD.to(state.h_NTD.dtype))
        read_NTE = state.read_NTE.index_copy(1, self.clamped_tokens, read_NRE.to(state.read_NTE.dtype))
        return self.adapted.open_block(block + 1, h_NTD, tokens, attention_input=read_NTE)

    def _close_clamped_tokens(self, block: int, v_NRW: Tensor, state: BlockState) -> Tensor:
        """Return the output of `block` at the clamped tokens, at the last block only those that the head reads."""
        tokens = self._tokens_read_from(block)
        if self.clamped_tokens is None and tokens is not None:
            v_NRW = v_NRW[:, tokens]
        return self.adapted.close_block(block, state.m_NRD, v_NRW.to(state.m_NRD.dtype))

    def _close_free_tokens(self, block: int, m_NTD: Tensor, u_NTW: Tensor) -> BlockState:
        """Close the open `block` for tokens that are not clamped, and return the state of the model."""
        is_last = block == len(self.adapted.sites) - 1
        if self.clamped_tokens is None or is_last:
            return BlockState(m_NTD)
        h_NTD = self.adapted.close_block(block, m_NTD, u_NTW)
        read_NTE = self.adapted.read_block(block + 1, h_NTD, self._tokens_read_from(block + 1))
        return BlockState(m_NTD[:, self.clamped_tokens], h_NTD, read_NTE)

    def _tokens_read_from(self, block: int) -> Tensor | None:
        """Return the tokens of a block's output that are read later; None for all tokens."""
        return self.readout_tokens if block == len(self.adapted.sites) - 1 else None

    def _differentiate(
        self, function: Callable[[Tensor, BlockState], Tensors], prefix: Prefix, chosen_Bk: Tensor
    ) -> tuple[Tensors, Tensors]:
        """Return `function(v, state)` and its derivative along the path, chosen neurons of the open block included."""
        a_BRW = self.clean.values[prefix.block]
        is_chosen_BW = torch.zeros_like(a_BRW[:, 0], dtype=torch.bool).scatter(1, chosen_Bk, True)
        is_chosen_BRW = is_chosen_BW[:, None].expand_as(a_BRW)
        v_NRW = torch.where(is_chosen_BRW, self._alpha * a_BRW, a_BRW).flatten(0, 1)
        tangent_NRW = is_chosen_BRW.repeat(len(self.quadrature.alpha_M), 1, 1).to(v_NRW.dtype)
        with self.passes():
            return jvp(
                lambda v, *state: function(v, BlockState.from_tensors(state)),
                (v_NRW, *prefix.state.to_tensors()),
                (tangent_NRW, *prefix.tangent.to_tensors()),
            )


def _multiply_rows(x_N: Tensor, y_N: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Return the inner product of each pair of rows: `[N, …]`, `[N, …]` -> `[N]`."""
    return (x_N.to(dtype) * y_N.to(dtype)).flatten(1).sum(1)
