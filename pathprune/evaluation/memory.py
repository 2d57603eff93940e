"""Peak memory of the tensors in one forward pass."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pathprune.models.adapt import evaluating


def peak_memory(model: nn.Module, images: Tensor) -> int:
    """Return the peak bytes of weights, images and activations while `model(images)` runs on its device.

    Scratch memory inside an operator and memory that the allocator reserves do not count. The number is the same in
    every run. It differs between devices only where one of them fuses operators.
    """
    inputs = [*model.parameters(), *model.buffers(), images]
    sizes = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in inputs}
    with evaluating(model), torch.no_grad(), _PeakTracker(set(sizes)) as activations:
        model(images)
    return int(sum(sizes.values()) + activations.peak)


class _PeakTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives the base class no types
    """Context manager that tracks the bytes of the storages that operators allocate, until they are freed.

    `known` has the identities of storages that do not count.
    """

    def __init__(self, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known, self.current, self.peak = known, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        identity = storage._cdata
        if identity in self.known:
            return
        self.known.add(identity)
        size = storage.nbytes()
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._forget, identity, size)

    def _forget(self, identity: int, size: int) -> None:
        self.known.discard(identity)
        self.current -= size
