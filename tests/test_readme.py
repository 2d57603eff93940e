"""Commands, code and links of the README and of every page of the documentation."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import pathprune
from pathprune.recipe import load_recipe
from pathprune.scoring import score

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str, page: Path) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_ci_runs_the_readmes_test_command() -> None:
    command = next(block.strip() for block in blocks("bash", README) if "pytest" in block)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,), (loader,) = blocks("python", README), blocks("python", ROOT / "docs" / "deploying.md")
    example_names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), example_names)
    assert (tmp_path / "pruned" / "model.safetensors").exists()

    assert len(loader.splitlines()) <= 40
    assert "pathprune" not in "".join(line for line in loader.splitlines() if "import" in line)
    loader_names: dict[str, Any] = {}
    exec(compile(loader, "deploying.md", "exec"), loader_names)
    adapted, images = example_names["adapted"], example_names["images"]
    scores = {site.name: torch.arange(site.width) * (1.0 + site.block) for site in adapted.sites}
    plan = pathprune.make_plan(scores, sites=adapted.sites, ratio=0.5, scope="global")
    uneven = pathprune.prune(adapted, plan=plan).model
    assert len({len(kept) for kept in plan.kept.values()}) > 1
    pathprune.save_pruned(uneven, "uneven")
    for folder, model in {"pruned": example_names["pruned"], "uneven": uneven}.items():
        torch.testing.assert_close(loader_names["load"](folder)(images), model(images), rtol=0, atol=1e-5)


def test_the_criterion_of_the_guide_scores_every_neuron() -> None:
    (code,) = blocks("python", ROOT / "docs" / "comparing.md")
    names: dict[str, Any] = {}
    exec(compile(code, "comparing.md", "exec"), names)
    adapted = pathprune.adapt(pathprune.load_model("demo").model)
    scores = score(pathprune.ScoringContext(adapted=adapted), criterion=names["Norm"](power=1.0))
    first = adapted.sites[0]
    torch.testing.assert_close(scores[first.name], first.down.weight.detach().abs().sum(0).double(), rtol=1e-5, atol=0)


def test_recipes_and_keys_of_the_commands_exist() -> None:
    text = "\n".join(block for page in PAGES for block in blocks("bash", page)).replace("\\\n", " ")
    commands = re.findall(
        r"pathprune (?:run|compare|prune|eval|mine|finetune|inspect) (\S+)(.*)$", text, flags=re.MULTILINE
    )
    assert len(commands) >= 15
    for recipe, rest in commands:
        if recipe in ("imagenet.yaml", "mine.yaml"):  # a copy of a shipped recipe
            recipe = "own-checkpoint"
        if rest.count("'") % 2:  # the end of a command in quotes
            rest = rest.rstrip("'")
        overrides = [word for word in shlex.split(rest, comments=True) if not word.startswith("--")]
        load_recipe(ROOT / recipe if "/" in recipe else recipe, overrides)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs" / "quickstart.ipynb"], ids=lambda page: page.name)
def test_links_between_the_pages_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)|src(?:set)?=\"([^\"]+)\"", text):
        place, _, heading = next(filter(None, target)).partition("#")
        if "://" in place:
            continue
        file = page.parent / place if place else page
        assert file.exists(), f"{page.name} links to {place}, which does not exist"
        assert file.suffix != ".md" or not heading or heading in headings(file), (
            f"{page.name} links to {place}#{heading}, which does not exist"
        )


def headings(page: Path) -> list[str]:
    """Return the anchors of a page's headings."""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)  # code comments too start with `#`
    lines = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    return [re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines]
