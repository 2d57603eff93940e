"""Forward-mode derivatives of models, at the cost of about one more forward pass.

torch's own forward mode also multiplies by the derivative of every weight, which is zero here, and does not implement
fused attention. The expensive layers therefore have rules of their own; torch differentiates all other operations.
"""

# … any leading dimensions, T tokens, S tokens attended to, E channels of a head

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Tensors = TypeVar("Tensors", Tensor, tuple[Tensor, ...])


def jvp(
    function: Callable[..., Tensors], primals: Iterable[Tensor], tangents: Iterable[Tensor]
) -> tuple[Tensors, Tensors]:
    """Return `function(*primals)` (a tensor or a tuple of tensors) and its derivative along `tangents`.

    Weights are constants. No gradients flow through the results.
    """
    with (
        torch.no_grad(),
        forward_ad.dual_level(),
        sdpa_kernel(SDPBackend.MATH),
        warnings.catch_warnings(),
        _CustomRules(),
    ):
        # torch compiles its forward-mode formulas with torch.jit on first use
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
        result = function(*map(_make_dual, primals, tangents))
        if isinstance(result, Tensor):
            return _split_dual(result)
        values, derivatives = zip(*map(_split_dual, result), strict=True)
        return values, derivatives


class _CustomRules(TorchFunctionMode):
    """Mode that calls the rules below in place of torch's functions. A rule that does not apply returns None."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule, kwargs = _RULES.get(func), kwargs or {}
        result = None if rule is None else rule(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result


def _unpack_dual(x: Tensor) -> tuple[Tensor, Tensor | None]:
    value, derivative = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return value, derivative


def _split_dual(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value and the derivative of a tensor; the derivative of a constant is zero."""
    value, derivative = _unpack_dual(x)
    return value, torch.zeros_like(value) if derivative is None else derivative


def _split_dual_float32(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return value and derivative in float32 or better: one rounded attention score shifts the whole softmax."""
    value, derivative = _split_dual(x)
    dtype = torch.promote_types(x.dtype, torch.float32)
    # one copy here instead of one in every product
    value, derivative = (x.to(dtype, memory_format=torch.contiguous_format) for x in (value, derivative))
    return value.contiguous(), derivative.contiguous()


def _make_dual(value: Tensor, derivative: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(value, derivative)  # type: ignore[no-untyped-call]
    return dual


def _has_derivative(*tensors: Tensor | None) -> bool:
    """Return whether any of the tensors varies along the direction of differentiation."""
    return any(x is not None and _unpack_dual(x)[1] is not None for x in tensors)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if not _has_derivative(x) or _has_derivative(weight, bias):
        return None
    value, derivative = _split_dual(x)
    return _make_dual(functional.linear(value, weight, bias), functional.linear(derivative, weight))


def _gelu(x: Tensor, approximate: str = "none") -> Tensor | None:
    if not _has_derivative(x):
        return None
    value, derivative = _split_dual(x)
    return _make_dual(
        functional.gelu(value, approximate=approximate),
        torch.ops.aten.gelu_backward(derivative, value, approximate=approximate),
    )


def _layer_norm(
    x: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    if not _has_derivative(x) or _has_derivative(weight, bias):
        return None
    value, derivative = _split_dual(x)
    normed, mean, rstd = torch.native_layer_norm(value, normalized_shape, weight, bias, eps)
    # the Jacobian of the normalisation without its weights is symmetric: its backward is its forward derivative
    normed_derivative, *_ = torch.ops.aten.native_layer_norm_backward(
        derivative.contiguous(), value, normalized_shape, mean, rstd, None, None, [True, False, False]
    )
    if weight is not None:
        normed_derivative = (normed_derivative * weight).to(normed.dtype)
    return _make_dual(normed, normed_derivative)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """Attend from `q` `[…, T, E]` to `k` and `v` `[…, S, E]`."""
    if attn_mask is not None or dropout_p or is_causal or enable_gqa or not _has_derivative(q, k, v):
        return None
    dtype = q.dtype
    (q, dq), (k, dk), (v, dv) = map(_split_dual_float32, (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(q.device.type, enabled=False):
        q, dq, k_t, dk_t = q * scale, dq * scale, k.transpose(-2, -1), dk.transpose(-2, -1)
        weights = (q @ k_t).softmax(-1)
        # the Jacobian of a softmax is symmetric: its backward is its forward derivative
        d_weights = torch.ops.aten._softmax_backward_data(dq @ k_t + q @ dk_t, weights, -1, weights.dtype)
        return _make_dual((weights @ v).to(dtype), (d_weights @ v + weights @ dv).to(dtype))


_RULES: dict[Any, Callable[..., Tensor | None]] = {
    functional.linear: _linear,
    functional.gelu: _gelu,
    functional.layer_norm: _layer_norm,
    functional.scaled_dot_product_attention: _attention,
}
