"""The documentation covers what the package offers, and its pictures are the ones that its script draws."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch
import typer
import yaml

import pathprune
from pathprune.cli.app import _app
from pathprune.mining import ZeroShot
from pathprune.pruning import list_compensations
from pathprune.recipe import parse_recipe
from pathprune.scoring import list_criteria

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    lines = text(ROOT / "README.md").splitlines()
    assert len(lines) <= 120
    (example,) = re.findall(r"```python\n(.*?)```", text(ROOT / "README.md"), flags=re.DOTALL)
    assert len(example.splitlines()) <= 10


def test_the_figures_of_the_readme_are_in_the_guide_that_has_their_command() -> None:
    figures = re.findall(r"[\d.]+ % \[[\d., ]+\]", text(ROOT / "README.md"))
    assert len(figures) == 6
    guide = text(DOCS / "recovering.md")
    assert not [figure for figure in figures if figure not in guide]


def test_the_api_reference_has_every_public_name() -> None:
    names = re.findall(r"^::: pathprune\.(\w+)$", text(DOCS / "reference" / "api.md"), flags=re.MULTILINE)
    assert sorted(names) == sorted(pathprune.__all__)


def test_the_concepts_have_a_row_for_every_criterion_and_compensation() -> None:
    rows = re.findall(r"^\| (`.*?) \|", text(DOCS / "concepts.md"), flags=re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([\w-]+)`", row)]
    assert sorted(named) == sorted([*list_criteria(), *list_compensations()])


def test_the_overview_of_commands_has_every_command() -> None:
    overview = text(DOCS / "reference" / "cli.md")
    commands = typer.main.get_command(_app).commands
    for name in [*commands, *commands["recipes"].commands]:
        assert re.search(rf"[` ]{name}\b", overview), f"docs/reference/cli.md has no row for {name}"


def test_the_map_of_the_house_has_every_part_of_the_package() -> None:
    package = Path(pathprune.__file__).parent
    parts = {file.stem for file in package.iterdir() if file.suffix == ".py" or (file / "__init__.py").exists()}
    rows = re.findall(r"^\| (`.*?) \|", text(ROOT / "CONTRIBUTING.md"), flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == {part for part in parts if not part.startswith("_")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_diagrams_are_what_the_script_draws(scheme: str, tmp_path: Path) -> None:
    runpy.run_path(str(DOCS / "_draw.py"))["draw"](tmp_path)
    drawn = sorted(tmp_path.glob(f"*-{scheme}.svg"))
    assert drawn
    for file in drawn:
        assert text(file) == text(DOCS / "images" / file.name), f"{file.name} is old; run python docs/_draw.py"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load(text(ROOT / "CITATION.cff"))
    assert citation["version"] == pathprune.__version__
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2503.09046"


def test_the_zero_shot_head_of_the_guide_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", text(DOCS / "mining-at-scale.md"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    embeddings = torch.eye(3, 8) * 2
    exec(code, {"text_tower": {"prompts": embeddings}.get, "prompts": "prompts", "names": ["cat", "dog", "owl"]})
    head = ZeroShot.load(tmp_path / "head.safetensors")
    torch.testing.assert_close(head.text_CK, torch.eye(3, 8))
    assert tuple(head.class_names) == ("cat", "dog", "owl")


def test_the_yaml_of_the_pages_is_a_recipe() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
    blocks = [block for page in pages for block in re.findall(r"```yaml\n(.*?)```", text(page), flags=re.DOTALL)]
    assert blocks
    for block in blocks:
        parse_recipe({"name": "page", **yaml.safe_load(block)})
