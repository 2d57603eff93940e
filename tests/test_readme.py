"""The README's commands and code are those that are tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pathprune.recipe import load_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_ci_runs_the_readmes_test_command() -> None:
    command = next(block.strip() for block in blocks("bash") if "pytest" in block)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "pruned" / "model.safetensors").exists()


def test_recipes_and_keys_of_the_commands_exist() -> None:
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    commands = re.findall(
        r"pathprune (run|prune|eval|mine|finetune|inspect) (\S+)(.*?)(?:#.*)?$", text, flags=re.MULTILINE
    )
    assert len(commands) >= 5
    for _, recipe, rest in commands:
        overrides = re.findall(r"'([^']*)'|(\S+=\S+)", rest)
        load_recipe(ROOT / recipe if "/" in recipe else recipe, [quoted or plain for quoted, plain in overrides])
