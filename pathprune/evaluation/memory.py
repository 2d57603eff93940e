"""The most memory that tensors hold during one forward pass."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pathprune.models.adapt import evaluating


def peak_memory(model: nn.Module, images: Tensor) -> int:
    """Bytes held at once, at most, by weights, images and activations while `model(images)` runs where it is.

    Scratch memory inside an operator, and what the allocator keeps in reserve, are not counted: the number is the same
    on every run and device, up to the operators that a device has fused.
    """
    held: dict[int, int] = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in _tensors_of(model, images)
    }
    with evaluating(model), torch.no_grad(), _Peak(set(held)) as activations:
        model(images)
    return int(sum(held.values()) + activations.peak)


def _tensors_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    return [*model.parameters(), *model.buffers(), images]


class _Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operators make, from when they appear to when nothing refers to them any more."""

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
