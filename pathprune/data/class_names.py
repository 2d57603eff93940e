"""Classes as people name them: by index or by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ClassKey = int | str


def class_indices(keys: Iterable[ClassKey], names: Sequence[str]) -> list[int]:
    """Indices of classes given by index or name, in order; raises ValueError for one unknown, doubtful or repeated."""
    found: list[int] = []
    for key in keys:
        if isinstance(key, str) and key in names:
            if names.count(key) > 1:
                raise ValueError(f"{names.count(key)} classes are called {key!r}; give an index")
            key = names.index(key)
        elif isinstance(key, str) and key.isdecimal():  # JSON has no other keys than strings
            key = int(key)
        elif isinstance(key, str):
            more = f" … ({len(names)})" if len(names) > 10 else ""
            raise ValueError(f"class {key!r} does not exist; classes are {', '.join(names[:10])}{more}")
        if not 0 <= key < len(names):
            raise ValueError(f"class {key} does not exist; classes are 0 … {len(names) - 1}")
        if key in found:
            raise ValueError(f"{class_name(key, names)} is given twice")
        found.append(key)
    return found


def class_name(index: int, names: Sequence[str]) -> str:
    """A class as messages call it: index and name."""
    return f"class {index} ({names[index]})"
