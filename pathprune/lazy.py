"""Lazy imports of the names of a package."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def import_on_use(package: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package, which imports a name from its home module when the name is first used.

    The homes are those of the package's own `from … import …` statements under `if TYPE_CHECKING:`, so that type
    checkers and the interpreter read the same list. A recipe is then read without waiting for torch.
    """
    module = sys.modules[package]
    imports = (node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ImportFrom))
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}

    def load(name: str) -> Any:
        if name not in module.__all__:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(module, name, value)  # the next use does not come here
        return value

    return load
