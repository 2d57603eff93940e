"""Keys of results: short hashes of the inputs of a computation."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def key_of(**inputs: Any) -> str:
    """Return a short hash of plain data; equal inputs give equal keys on every machine."""
    content = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


def key_of_array(array: NDArray[Any]) -> str:
    """Return a short hash of an array's type, shape and content."""
    description = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.blake2b(description + array.tobytes(), digest_size=12).hexdigest()
