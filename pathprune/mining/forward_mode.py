"""Forward-mode derivatives of models, at the price of one more pass.

torch's own take a product with the derivative of every weight, which is zero here, and have none of fused attention. So
the layers that cost have rules of their own; everything else is left to torch.
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
    """`function(*primals)`, a tensor or a tuple of them, and its derivative along `tangents`; weights stay as they are.

    No gradients flow through the results.
    """
    with (
        torch.no_grad(),
        forward_ad.dual_level(),
        sdpa_kernel(SDPBackend.MATH),
        warnings.catch_warnings(),
        _OwnRules(),
    ):
        # torch compiles its own formulas with it on first use
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
        result = function(*map(_dual, primals, tangents))
        if isinstance(result, Tensor):
            return _parts(result)
        values, derivatives = zip(*map(_parts, result), strict=True)
        return values, derivatives


class _OwnRules(TorchFunctionMode):
    """Calls the rules below instead of the functions that they are for, unless they give None: they do not apply."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule, kwargs = _RULES.get(func), kwargs or {}
        result = None if rule is None else rule(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result


def _unpacked(x: Tensor) -> tuple[Tensor, Tensor | None]:
    value, derivative = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return value, derivative


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """The value and the derivative of a tensor, zero where nothing varies with it."""
    value, derivative = _unpacked(x)
    return value, torch.zeros_like(value) if derivative is None else derivative


def _exact_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """The parts in float32 or better: rounded scores would shift the softmax of all of them."""
    value, derivative = _parts(x)
    dtype = torch.promote_types(x.dtype, torch.float32)
    # one copy here in place of one in each of the products
    value, derivative = (x.to(dtype, memory_format=torch.contiguous_format) for x in (value, derivative))
    return value.contiguous(), derivative.contiguous()


def _dual(value: Tensor, derivative: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(value, derivative)  # type: ignore[no-untyped-call]
    return dual


def _varies(*tensors: Tensor | None) -> bool:
    return any(x is not None and _unpacked(x)[1] is not None for x in tensors)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if not _varies(x) or _varies(weight, bias):
        return None
    value, derivative = _parts(x)
    return _dual(functional.linear(value, weight, bias), functional.linear(derivative, weight))


def _gelu(x: Tensor, approximate: str = "none") -> Tensor | None:
    if not _varies(x):
        return None
    value, derivative = _parts(x)
    return _dual(
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
    if not _varies(x) or _varies(weight, bias):
        return None
    value, derivative = _parts(x)
    normed, mean, rstd = torch.native_layer_norm(value, normalized_shape, weight, bias, eps)
    # the Jacobian of the normalisation without its weights is symmetric, so the one backward serves
    moved, *_ = torch.ops.aten.native_layer_norm_backward(
        derivative.contiguous(), value, normalized_shape, mean, rstd, None, None, [True, False, False]
    )
    return _dual(normed, moved if weight is None else (moved * weight).to(normed.dtype))


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
    """Attention `[…, T, E]` over `[…, S, E]`."""
    if attn_mask is not None or dropout_p or is_causal or enable_gqa or not _varies(q, k, v):
        return None
    dtype = q.dtype
    (q, dq), (k, dk), (v, dv) = map(_exact_parts, (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(q.device.type, enabled=False):
        q, dq, k_t, dk_t = q * scale, dq * scale, k.transpose(-2, -1), dk.transpose(-2, -1)
        weights = (q @ k_t).softmax(-1)
        # the Jacobian of a softmax is symmetric, so the one backward serves
        moved = torch.ops.aten._softmax_backward_data(dq @ k_t + q @ dk_t, weights, -1, weights.dtype)
        return _dual((weights @ v).to(dtype), (moved @ v + weights @ dv).to(dtype))


_RULES: dict[Any, Callable[..., Tensor | None]] = {
    functional.linear: _linear,
    functional.gelu: _gelu,
    functional.layer_norm: _layer_norm,
    functional.scaled_dot_product_attention: _attention,
}
