"""Files beside the shipped recipes that are generated from the code.

Run `python -m pathprune.recipe.generate` in the source tree after a change of a key, default or description.
"""

from __future__ import annotations

import json

from pathprune.files import write_text
from pathprune.recipe.reference import render_reference
from pathprune.recipe.schema import recipe_schema
from pathprune.recipe.shipped import SCHEMA_FILE, recipes_folder


def generated_files() -> dict[str, str]:
    """Return the content of the generated files by name."""
    return {
        "reference.yaml": render_reference(),
        SCHEMA_FILE: json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n",
    }


if __name__ == "__main__":
    for name, text in generated_files().items():
        write_text(recipes_folder() / name, text)
