"""Counter of multiply-accumulates in forward and backward passes and matrix factorisations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_aten = torch.ops.aten


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> float:
    return float(sdpa_flop_count(q.shape, k.shape, v.shape)) / 2  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> float:
    return float(sdpa_backward_flop_count(gradient.shape, q.shape, k.shape, v.shape)) / 2  # type: ignore[no-untyped-call]


# Kernels that torch's registry of FLOP counts lacks. The processor decides which attention kernel runs.
_ATTENTION: Mapping[Any, Callable[..., float]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _aten._scaled_dot_product_attention_math_for_mps: _attention,
}

# Factorisations, which torch does not count: leading terms from Golub & Van Loan, Matrix Computations.
_FACTORISATIONS: Mapping[Any, Callable[..., float]] = {
    _aten.linalg_cholesky_ex: lambda matrix, *_: len(matrix) ** 3 / 6,
    _aten.linalg_inv_ex: lambda matrix, *_: len(matrix) ** 3,
    _aten._linalg_eigh: lambda matrix, *_: 4.5 * len(matrix) ** 3,
    _aten.cholesky_solve: lambda right, *_: len(right) * right.numel(),
    _aten.addr_: lambda matrix, *_: matrix.numel(),
}


class MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives the base class no types
    """Context manager that counts the multiply-accumulates of this process in its attribute `macs`.

    Matrix products, convolutions, attention and matrix factorisations count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0.0

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = func._overloadpacket
        if operation in flop_registry:  # FLOPs: one multiply-accumulate is two
            self.macs += flop_registry[operation](*args, **(kwargs or {}), out_val=result) / 2
        elif operation in _ATTENTION:
            self.macs += _ATTENTION[operation](*args)
        elif operation in _FACTORISATIONS:
            self.macs += _FACTORISATIONS[operation](*args)
        return result
