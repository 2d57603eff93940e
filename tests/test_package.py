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

# stage -> what it may import from: itself and the stages before it
STAGES = [
    {"files", "section"},
    {"models"},
    {"class_names", "data", "progress"},
    {"mining"},
    {"inspection"},
    {"scoring"},
    {"pruning"},
    {"recovery"},
    {"evaluation"},
    {"export"},
    {"backends"},
    {"report"},
    {"recipe"},
    {"runs"},
    {"splits", "variants"},
    {"mined"},
    {"estimate", "experiment"},
    {"timings"},
    {"planning", "provenance"},
    {"training"},
    {"recovered"},
    {"comparison", "reporting"},
    {"pipeline"},
    {"bench", "inspecting"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(STAGES) for name in names}


def test_every_public_name_is_there() -> None:
    for name in pathprune.__all__:
        assert getattr(pathprune, name).__name__ == name
    assert set(pathprune.__all__) == {name for names in pathprune._HOMES.values() for name in names}
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


def test_imports_point_down_the_stages_only() -> None:
    for file in PACKAGE.rglob("*.py"):
        stage = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if stage == "__init__":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pathprune."):
                imported = str(node.module).split(".")[1]
                assert LEVEL[imported] <= LEVEL[stage], f"{file} imports {node.module}"
