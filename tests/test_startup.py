"""Start of commands: which packages are imported to read a recipe, and which are not."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    *("torch", "timm", "datasets", "evaluate", "accelerate", "transformers"),
    *("numpy", "scipy", "pyarrow", "matplotlib"),
)
CODE = f"""
import sys

from pathprune.cli import main

sys.argv = ["pathprune", *sys.argv[1:]]
try:
    main()
finally:
    imported = [name for name in {HEAVY} if name in sys.modules]
    print("imported:", *imported)
"""


def list_imports(*arguments: str) -> list[str]:
    """Return the heavy packages that a command imports."""
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["recipes", "list"],
        ["recipes", "show", "quickstart", "seed=1"],
        ["recipes", "validate", "reference"],
        ["recipes", "schema"],
        ["run", "nowhere.yaml"],
        ["run", "quickstart", "score.criteria=tayler"],
        ["run", "quickstart", "data.source=./nowhere"],
        ["compare", "quickstart", "model.name=./nowhere"],
        ["mine", "quickstart", "model.checkpoint=nowhere.pth"],
        ["finetune", "quickstart", "train.distill={teacher: ./nowhere}"],
        ["prune", "own-checkpoint"],
    ],
    ids=" ".join,
)
def test_recipes_are_listed_checked_and_refused_without_torch(arguments: list[str]) -> None:
    assert list_imports(*arguments) == []


def test_listing_the_recipes_does_not_validate_one() -> None:
    code = "import sys; from pathprune.recipe import shipped_recipes; sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
