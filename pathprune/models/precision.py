"""Forward and backward passes of a float32 model in a lower precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from pathprune.models.adapt import find_device

Passes = Callable[[], AbstractContextManager[object]]
"""Opens a context in which passes through blocks run."""


@contextmanager
def mixed_precision(model: nn.Module, dtype: torch.dtype | None) -> Iterator[Passes]:
    """Prepare `model` for passes in `dtype` by autocast, in place; restore the model at the end.

    None leaves the model and its passes in float32. The weights of linear layers are converted once: autocast would
    convert them in every pass, since it caches only weights that require gradients.
    """
    if dtype is None:
        yield nullcontext
        return
    device = find_device(model).type

    @contextmanager
    def open_passes() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(device, dtype))
            if device == "cpu":
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                stack.enter_context(_ExactAttention())
            yield

    weights = {module.weight for module in model.modules() if isinstance(module, nn.Linear)}
    exact = [(weight, weight.data) for weight in weights if weight.dtype == torch.float32]
    try:
        for weight, data in exact:
            weight.data = data.to(dtype)
        yield open_passes
    finally:
        for weight, data in exact:
            weight.data = data


class _ExactAttention(TorchFunctionMode):
    """Attention in float32 without fusion: the backward of fused attention in lower precision is slow on CPUs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_to_float32, args), **kwargs)


def _to_float32(x: Any) -> Any:
    """Convert a floating-point tensor, in one copy with the contiguous layout that matrix products need."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return x.to(torch.float32, memory_format=torch.contiguous_format)
