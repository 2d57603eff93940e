"""What the package offers, and which way its imports point."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pathprune

PACKAGE = Path(pathprune.__file__).parent

# a module imports from its own level and those above it in this list
LEVELS = [
    {"section", "files", "progress", "keys", "artifacts", "lazy", "_version"},
    {"models", "data"},
    {"mining", "recovery"},
    {"scoring", "inspection"},
    {"pruning"},
    {"evaluation"},
    {"recipe", "export"},
    {"runs", "report"},
    {"stages"},
    {"pipeline", "bench"},
    {"cli", "__main__"},
]
HOME = {name: getattr(pathprune, name).__module__.removeprefix("pathprune.") for name in pathprune.__all__}
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def test_every_public_name_is_there() -> None:
    for name in pathprune.__all__:
        assert getattr(pathprune, name).__name__ == name
    assert not hasattr(pathprune, "no_such_name")


def test_packages_have_the_names_that_they_say_they_offer() -> None:
    for file in PACKAGE.rglob("__init__.py"):
        package = import_module(".".join(file.parent.relative_to(PACKAGE.parent).parts))
        missing = [name for name in getattr(package, "__all__", ()) if not hasattr(package, name)]
        assert not missing, f"{package.__name__} has no {missing}"


def test_float64_is_made_on_the_cpu() -> None:
    """Apple's accelerators have none, and refuse to make any on the way to the CPU."""
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"\.double\(\)\.cpu\(|\.to\(\"cpu\", torch\.float64", text), file


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, pathprune, pathprune.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def imported(node: ast.AST) -> list[str]:
    """The parts of the package that an import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module == "pathprune":
        names = [f"pathprune.{HOME.get(alias.name, alias.name)}" for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
    else:
        names = []
    return [name.split(".")[1] for name in names if name.startswith("pathprune.")]


def test_imports_point_one_way() -> None:
    for file in PACKAGE.rglob("*.py"):
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for name in imported(node):
                assert LEVEL[name] <= LEVEL[part], f"{file} imports from {name}"
