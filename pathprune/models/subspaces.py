"""Subspaces of the channels of a head: the bases in which fewer channels lose least.

Pure maths. All tensors are float64, on one device.
"""

# H heads, E channels of a head, R channels that stay, D hidden dimension, O outputs

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_FLOOR = 1e-10  # least eigenvalue of a second moment, relative to its largest


@dataclass(frozen=True)
class ValueBasis:
    """Maps of the values of each head to R channels and back: `reduce` `[H, R, E]`, `expand` `[H, E, R]`."""

    reduce: Tensor
    expand: Tensor

    @property
    def projector(self) -> Tensor:
        """Return the projector `[H, E, E]` that narrowing applies to the values."""
        return self.expand @ self.reduce


@dataclass(frozen=True)
class QueryKeyBasis:
    """Maps of queries and keys of each head to R channels: `queries` and `keys` `[H, R, E]`."""

    queries: Tensor
    keys: Tensor

    @property
    def projector(self) -> Tensor:
        """Return the projector `[H, E, E]` that narrowing applies to the keys."""
        return self.queries.mT @ self.keys


@dataclass(frozen=True)
class AttentionBases:
    """Bases of the heads of one attention; None keeps all channels."""

    values: ValueBasis | None = None
    queries: QueryKeyBasis | None = None


def compute_value_basis(moments: Tensor, down: Tensor, *, rank: int) -> ValueBasis:
    """Return the basis in which `rank` channels of the values lose least of the output projection's result.

    - moments: second moments `[H, E, E]` of the mixed values, the output projection's input. Take covariances instead
      if a bias makes up for the mean of the loss.
    - down: the output projection's weight by head `[H, O, E]`, multiplied from the left by whatever follows, such as a
      LayerScale or a square root of the output's sensitivity.

    With `C` the moments, the basis is that of the top right singular vectors `V` of `W_o C^{1/2}`: values become
    `Vᵀ C^{-1/2} v`, and the projection `W_o C^{1/2} V`.
    """
    root, inverse = _compute_roots(moments)
    # as eigenvectors: a projection with fewer outputs than channels has too few singular vectors
    gram = (down @ root).mT @ (down @ root)
    top = torch.linalg.eigh(gram).eigenvectors.flip(-1)[..., :rank].mT
    return ValueBasis(reduce=top @ inverse, expand=root @ top.mT)


def compute_query_key_basis(queries: Tensor, keys: Tensor, *, rank: int) -> QueryKeyBasis:
    """Return the basis in which `rank` channels of queries and keys lose least of the logits, in the whitened sense.

    `queries` and `keys` are second moments `[H, E, E]`, biases included. Keys should be centred over the tokens that
    are attended to together, since softmax ignores a constant added to all of them.

    With `C_q^{1/2} C_k^{1/2} ≈ U S Vᵀ` of the top singular values, queries become `Uᵀ C_q^{-1/2} q` and keys
    `Uᵀ C_q^{1/2} k`.
    """
    root, inverse = _compute_roots(queries)
    key_root, _ = _compute_roots(keys)
    top = torch.linalg.svd(root @ key_root).U[..., :rank].mT
    return QueryKeyBasis(queries=top @ inverse, keys=top @ root)


def _compute_roots(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric square root of each matrix and its inverse; tiny eigenvalues are raised."""
    eigenvalues, vectors = torch.linalg.eigh(moments)
    largest = eigenvalues[..., -1:]
    floor = torch.where(largest > 0, _FLOOR * largest, 1.0)  # a head that is always zero has no eigenvalue above 0
    scale = eigenvalues.maximum(floor).sqrt()[..., None, :]
    return (vectors * scale) @ vectors.mT, (vectors / scale) @ vectors.mT
