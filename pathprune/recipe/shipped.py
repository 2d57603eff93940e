"""Recipe files that ship with pathprune."""

from __future__ import annotations

from pathlib import Path

from pathprune.files import write_text
from pathprune.recipe.error import RecipeError

SCHEMA_FILE = "recipe.schema.json"
SCHEMA_COMMENT = f"# yaml-language-server: $schema=./{SCHEMA_FILE}"  # the first line of every recipe, for editors


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes: in the installed package, or in the source tree."""
    package = Path(__file__).parent.parent
    return package / "_recipes" if (package / "_recipes").is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Return the files of the shipped recipes by name."""
    return {file.stem: file for file in sorted(recipes_folder().glob("*.yaml"))}


def find_recipe(path: str | Path) -> Path:
    """Return the file of a recipe, given as a path or as a shipped recipe's name; raise `RecipeError` without one."""
    if Path(path).is_file():
        return Path(path)
    shipped = shipped_recipes()
    if str(path) in shipped:
        return shipped[str(path)]
    problem = "is a folder" if Path(path).is_dir() else "does not exist"
    raise RecipeError(f"recipe '{path}' {problem}; give a YAML file or one of {', '.join(shipped)}")


def read_summary(file: Path) -> str:
    """Return the first comment line of a shipped recipe after the one for editors."""
    return file.read_text(encoding="utf-8").splitlines()[1].lstrip("# ")


def copy_recipe(name: str, target: Path) -> None:
    """Copy a shipped recipe to `target`, and let its schema comment point to the installed schema.

    Raises `RecipeError` for an unknown name or an existing target.
    """
    shipped = shipped_recipes()
    if name not in shipped:
        raise RecipeError(f"no shipped recipe is called '{name}'; choose from {', '.join(shipped)}")
    if target.exists():
        raise RecipeError(f"{target} exists; choose another file")
    schema = (recipes_folder() / SCHEMA_FILE).resolve().as_uri()
    text = shipped[name].read_text(encoding="utf-8")
    write_text(target, text.replace(f"./{SCHEMA_FILE}", schema, 1))
