"""Hooks that are always removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def attach_hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Keep hooks attached inside the context and remove them on leaving.

    Pass a generator that registers the hooks: if one registration fails, the hooks before it are removed too.
    """
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield
