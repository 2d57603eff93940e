"""Classes given by index or by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ClassKey = int | str


def class_indices(keys: Iterable[ClassKey], names: Sequence[str]) -> list[int]:
    """Return the indices of classes given by index or name, in the given order.

    Raises `ValueError` for a class that is unknown, ambiguous or given twice.
    """
    indices: list[int] = []
    for key in keys:
        if isinstance(key, str) and key in names:
            if names.count(key) > 1:
                raise ValueError(f"{names.count(key)} classes are called {key!r}; give an index")
            key = names.index(key)
        elif isinstance(key, str) and key.isdecimal():  # JSON stores every key as a string
            key = int(key)
        elif isinstance(key, str):
            more = f", … ({len(names)} in all)" if len(names) > 10 else ""
            raise ValueError(f"class {key!r} does not exist; classes are {', '.join(names[:10])}{more}")
        if not 0 <= key < len(names):
            raise ValueError(f"class {key} does not exist; classes are 0 … {len(names) - 1}")
        if key in indices:
            raise ValueError(f"{class_name(key, names)} is given twice")
        indices.append(key)
    return indices


def class_name(index: int, names: Sequence[str]) -> str:
    """Return the name of a class in messages: its index and its label."""
    return f"class {index} ({names[index]})"
