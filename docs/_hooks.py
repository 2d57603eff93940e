"""MkDocs hooks that add generated parts: command help, recipe keys, the notebook and project files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from pathprune.recipe import read_summary, shipped_recipes

ROOT = Path(__file__).parent.parent
PROJECT_FILES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the notebook and of files outside docs/."""
    for page, name in PROJECT_FILES.items():
        files.append(File.generated(config, page, content=_rewrite_links((ROOT / name).read_text(encoding="utf-8"))))
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
    pictures: dict[str, bytes] = {}
    files.append(File.generated(config, "quickstart.md", content=render_notebook(notebook, pictures)))
    for name, content in pictures.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in generated parts, and point links to files at the pages made from them."""
    for mark, part in {"commands": render_commands, "recipes": render_recipe_table, "keys": render_recipe_keys}.items():
        if f"<!-- {mark} -->" in markdown:
            markdown = markdown.replace(f"<!-- {mark} -->", part())
    for name, source in {"quickstart.md": "quickstart.ipynb", **PROJECT_FILES}.items():
        markdown = re.sub(rf"\]\((\.\./)?{re.escape(source)}(#[^)]*)?\)", rf"]({name}\2)", markdown)
    return markdown


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Raise `PluginError` for a page that loads a script, style or image from another host."""
    fetched = re.findall(r'<(?:script|img|link(?! rel="canonical"))\b[^>]*(?:src|href)="(?:https?:)?//[^"]+"', output)
    if fetched:
        raise PluginError(f"{page.file.src_uri} fetches from elsewhere: {fetched}")
    return output


def render_commands() -> str:
    """Return the help of every command as Markdown."""
    command = [sys.executable, "-m", "typer", "--app", "_app", "pathprune.cli.app", "utils", "docs"]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    text = text[text.index("\n## ") :]  # the page has an overview of its own
    return re.sub(r"^(#+) `pathprune (.*)`$", r"\1 \2", text, flags=re.MULTILINE)


def render_recipe_table() -> str:
    """Return a table of the shipped recipes with their first comment."""
    rows = ["| recipe | |", "|---|---|"]
    rows += [f"| `{name}` | {read_summary(file)} |" for name, file in shipped_recipes().items()]
    return "\n".join(rows)


def render_recipe_keys() -> str:
    """Return the reference recipe with a heading for each key of the top level."""
    text = (ROOT / "recipes" / "reference.yaml").read_text(encoding="utf-8")
    parts = []
    for paragraph in text.partition("\n\n")[2].strip().split("\n\n"):
        (key,) = re.findall(r"^(\w+):", paragraph, flags=re.MULTILINE)
        parts.append(f"### `{key}`\n\n``` {{ .yaml .wrap }}\n{paragraph}\n```\n")
    return "\n".join(parts)


def render_notebook(notebook: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """Return a notebook as Markdown, and add its images to `pictures` by file name."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"quickstart-{len(pictures)}.png"
                pictures[name] = b64decode(data["image/png"])
                parts.append(f"![Figure drawn by the code above]({name})")
            elif "text" in output or "text/plain" in data:
                parts.append(f"```text\n{''.join(output.get('text', data.get('text/plain', []))).rstrip()}\n```")
    return "\n\n".join(parts)


def _rewrite_links(markdown: str) -> str:
    """Return Markdown of the repository's root with links relative to docs/, and without links to source files."""
    markdown = re.sub(r"\[([^\]]+)\]\((?:pathprune|recipes|tests)/[^)]*\)", r"`\1`", markdown)
    return markdown.replace("](docs/", "](")
