"""The joint attribution of neuron paths (arXiv 2503.09046): integrals over α, with the clamped prefix carried along.

Layers are clamped one after the other, and nothing before block `l + 1` changes once the neurons of layer `l` are
chosen. So a `Prefix` holds, for every node α, the state at which block `l` is open, and that state's derivative along
"+1 on every clamped value of every chosen neuron". One backward pass from the objective to the prefix then yields both
the gradient of every neuron of layer `l` and the summed gradient of all neurons chosen before it.
"""

# B images, M nodes, N = M·B rows (one image at one node; nodes outermost), T tokens, R clamped tokens, D channels,
# W neurons of a layer, k neurons chosen in a layer, L layers

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pathprune.mining.objectives import Readout
from pathprune.models.seam import AdaptedModel

T = TypeVar("T")


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
    """The model with every layer before `block` clamped at its chosen neurons, opened at `block`.

    `m` and `u` are `open_block`'s results; `dm` and `du` their derivatives along +1 on every chosen clamped value.
    Those of the last block have the readout rows only, as nothing reads the others.
    """

    block: int
    m_NTD: Tensor
    u_NTW: Tensor
    dm_NTD: Tensor
    du_NTW: Tensor


@dataclass(frozen=True)
class JointAttribution:
    """The integrals ∫ ∂p/∂v dα of one batch of images, where layers of `adapted` are clamped to `v(α)`.

    `rows` are the clamped tokens, `readout` those that the head reads; None for all of them. `autocast` makes the
    context that block passes run in.
    """

    adapted: AdaptedModel
    objective: Readout
    clean: CleanPass
    alpha_M: Tensor
    weight_M: Tensor
    rows: Tensor | None
    readout: Tensor | None
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext

    def start(self) -> Prefix:
        """Block 0 opened, nothing clamped: the same at every node."""
        rows = self._rows_read_from(0)
        read = (opened if rows is None else opened[:, rows] for opened in self.clean.opened)
        m, u = (opened.repeat(len(self.alpha_M), 1, 1) for opened in read)
        return Prefix(0, m, u, torch.zeros_like(m), torch.zeros_like(u))

    def layer_gradients(self, prefix: Prefix) -> tuple[Tensor, Tensor]:
        """Clamp all of `prefix.block` to α·a: its own gradients ∫ ∂p/∂v `[B, R, W]`, and those of all neurons
        chosen before it, summed, `[B]`.
        """
        v = (self.alpha_M[:, None, None, None] * self.clean.values[prefix.block]).flatten(0, 1).requires_grad_()
        # p differentiated by a step along the tangent, at 0, is the sum over all neurons chosen before
        step = torch.zeros_like(v[:, :1, :1]).requires_grad_()
        with torch.enable_grad(), self.autocast():
            m = _moved(prefix.m_NTD, step, prefix.dm_NTD)
            u = self._clamped(prefix.block, _moved(prefix.u_NTW, step, prefix.du_NTW), v)
            p_N = self._suffix(prefix.block, m, u)
            grad_v, grad_step = torch.autograd.grad(p_N.sum(), (v, step))
        return self.integrated(grad_v), self.integrated(grad_step).flatten()

    def advance(self, prefix: Prefix, chosen_Bk: Tensor) -> Prefix:
        """Clamp `prefix.block` to a, with the chosen neurons at α·a, and open the next block."""
        block = prefix.block

        def to_next_block(m: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            return self._open(block + 1, self.adapted.close_block(block, m, u))

        (m, u), (dm, du) = self._along_path(to_next_block, prefix, chosen_Bk)
        return Prefix(block + 1, m, u, dm, du)

    def path_gradient(self, prefix: Prefix, chosen_Bk: Tensor) -> Tensor:
        """Clamp the last layer like the layers before it: ∫ Σ ∂p/∂v over all chosen neurons of all layers, `[B]`."""

        def to_objective(m: Tensor, u: Tensor) -> Tensor:
            return self._suffix(prefix.block, m, u)

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

    def _suffix(self, block: int, m: Tensor, u: Tensor) -> Tensor:
        """From block `block`, opened, to the objective: `m` `[N, T, D]`, `u` `[N, T, W]` -> `[N]`."""
        h = self.adapted.close_block(block, m, u)
        for later in range(block + 1, len(self.adapted.sites)):
            h = self.adapted.close_block(later, *self._open(later, h))
        return self.value(h)

    def _open(self, block: int, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.adapted.open_block(block, h, self._rows_read_from(block))

    def _rows_read_from(self, block: int) -> Tensor | None:
        """The rows of a block's results that something later reads; None for all of them."""
        return self.readout if block == len(self.adapted.sites) - 1 else None

    def _along_path(self, function: Callable[[Tensor, Tensor], T], prefix: Prefix, chosen_Bk: Tensor) -> tuple[T, T]:
        """`function(m, u)` with the chosen neurons of the open block clamped too, and its derivative along the path."""
        block, a_BRW = prefix.block, self.clean.values[prefix.block]
        chosen_BW = torch.zeros_like(a_BRW[:, 0], dtype=torch.bool).scatter(1, chosen_Bk, True)
        chosen_BRW = chosen_BW[:, None].expand_as(a_BRW)
        v = torch.where(chosen_BRW, self.alpha_M[:, None, None, None] * a_BRW, a_BRW).flatten(0, 1)
        dv = chosen_BRW.repeat(len(self.alpha_M), 1, 1)
        u, du = self._clamped(block, prefix.u_NTW, v), self._clamped(block, prefix.du_NTW, dv)
        with self.autocast(), _forward_mode():
            result = torch.func.jvp(function, (prefix.m_NTD, u), (prefix.dm_NTD, du))
        return result[0], result[1]

    def _clamped(self, block: int, u_NTW: Tensor, v_NRW: Tensor) -> Tensor:
        """The hidden rows of an open block, with those of the clamped tokens replaced."""
        v = v_NRW.to(u_NTW.dtype)
        read = self._rows_read_from(block)
        if self.rows is None:
            return v if read is None else v[:, read]
        return u_NTW.index_copy(1, self.rows, v) if read is None else v  # clamped are the rows that are read


@contextmanager
def _forward_mode() -> Iterator[None]:
    """Where forward-mode derivatives are taken: fused attention has none."""
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # torch compiles its own forward-mode formulas with it on first use
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
        yield


def _moved(x: Tensor, step: Tensor, tangent: Tensor) -> Tensor:
    return (x + step * tangent).to(x.dtype)
