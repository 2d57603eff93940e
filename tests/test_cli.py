"""The command line: printed results, and one line per user error."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tiny import rows, tiny_recipe, write_data, write_model

from pathprune.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path / "data")
    write_model(tmp_path / "model")
    (tmp_path / "tiny.yaml").write_text(tiny_recipe(tmp_path).to_yaml(), encoding="utf-8")
    return tmp_path


def invoke(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pathprune", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_run_prints_the_comparison_and_the_run_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(monkeypatch, "run", str(folder / "tiny.yaml"), "prune.ratio=0.5") == 0
    printed = capsys.readouterr().out
    for word in (
        "dense",
        "path",
        "path-class",
        "magnitude-l2",
        "random",
        "50%",
        "50% removed, compensation none: path ties with path-class (+0.0 [+0.0, +0.0])",
        "30 evaluation images",
    ):
        assert word in printed
    assert str(folder / "run") in printed


def test_compare_prints_a_table_per_budget_and_the_report(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(monkeypatch, "compare", str(folder / "tiny.yaml"), "report=true") == 0
    printed = capsys.readouterr().out
    for words in ("25 % of MLP neurons removed: top-1 retained", "50 % of MLP neurons removed: top-1 retained"):
        assert words in printed
    for words in ("magnitude-l2", "none", "mean", "of the dense model's top-1", "`"):
        assert (words in printed) == (words != "`")
    assert str(folder / "run" / "report.html") in printed
    assert (folder / "run" / "report.html").exists()


def test_dry_run_prints_the_plan_and_saves_no_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(folder / "tiny.yaml")
    assert invoke(monkeypatch, "prune", recipe, "prune.ratio=0.5", "score.criteria=magnitude-l2", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "magnitude-l2 at 50%: 50.0% of all MLP neurons" in printed
    assert "blocks.1.mlp.fc2" in printed
    assert not (folder / "run" / "pruned").exists()


def test_eval_accepts_a_checkpoint_of_prune(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(folder / "tiny.yaml")
    assert invoke(monkeypatch, "prune", recipe, "prune.ratio=0.5") == 0
    saved = capsys.readouterr().out.splitlines()
    assert len(saved) == 8
    checkpoint = saved[0]
    assert invoke(monkeypatch, "eval", recipe, f"model.name={checkpoint}", f"output={folder / 'check'}") == 0
    assert "dense" in capsys.readouterr().out


def test_mine_prints_the_file_of_statistics(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(monkeypatch, "mine", str(folder / "tiny.yaml"), "score.criteria=[path]") == 0
    assert Path(capsys.readouterr().out.strip()).exists()


MISTAKES = {
    "wrong model name": (["model.name=vit_smal_patch16_224"], "unknown model 'vit_smal_patch16_224'"),
    "missing checkpoint folder": (["model.name=./nowhere"], "folder nowhere does not exist"),
    "missing weights file": (
        ["model.name=vit_tiny_patch16_224", "model.checkpoint=missing.pth"],
        "checkpoint missing.pth does not exist",
    ),
    "missing data": (["data.source=./nowhere"], "data source './nowhere' does not exist"),
    "missing split": (["data.splits.evaluate=validation"], "split 'validation' of data source"),
    "ratio out of range": (["prune.ratio=1.2"], "ratio 1.2 is out of range"),
    "unknown key": (["prune.rato=0.2"], "unknown key 'prune.rato'; did you mean 'ratio'?"),
    "unknown criterion": (["score.criteria=[tayler]"], "unknown criterion 'tayler'; did you mean 'taylor'?"),
    "criterion twice": (["score.criteria=[path, path]"], "'path' is given twice"),
    "nothing to score": (["score.criteria=[]"], "score.criteria"),
    "unknown criterion to save": (["prune.save=pathh"], "unknown criterion 'pathh'"),
    "transform timm does not have": (["model.data_config={interpolation: cubicc}"], "choose from nearest, bilinear"),
    "unknown block": (["prune.exclude_blocks=[9]"], "block 9 does not exist"),
    "empty class": (
        ["data.splits.mine=train[:1]", "score.criteria=[{name: path, classes: [owl]}]"],
        "no images of class 2 (owl) were mined",
    ),
    "unknown class": (["score.criteria=[{name: path, classes: [bird]}]"], "bird"),
    "class token of a pooling model": (
        [
            *("model.name=vit_tiny_patch16_224", "model.pretrained=false", "model.num_classes=3"),
            "model.args={img_size: 8, patch_size: 4, depth: 2, global_pool: avg, class_token: false}",
            "score.criteria=[path-class]",
        ],
        "use tokens='all'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    monkeypatch.chdir(folder)
    overrides, message = MISTAKES[mistake]
    assert invoke(monkeypatch, "run", "tiny.yaml", *overrides) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert message in error


def test_labels_outside_the_head_are_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = rows(range(6)).remove_columns("label").add_column("label", [0, 1, 2, 3, 0, 1])
    table.to_parquet(str(folder / "data" / "test.parquet"))
    assert invoke(monkeypatch, "run", str(folder / "tiny.yaml")) == 2
    assert "label 3 of image 3 is out of range: the model has 3 classes (0 to 2)" in capsys.readouterr().err


def test_verbose_shows_the_traceback_also_after_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pathprune", "run", str(folder / "tiny.yaml"), "data.source=./no", "--verbose"])
    with pytest.raises(ValueError, match="does not exist"):
        main()


def test_recipes_can_be_listed_shown_validated_and_copied(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert invoke(monkeypatch, "recipes", "list") == 0
    assert "quickstart" in capsys.readouterr().out
    assert invoke(monkeypatch, "recipes", "show", "quickstart", "prune.ratio=0.25") == 0
    assert "- 0.25" in capsys.readouterr().out
    assert invoke(monkeypatch, "recipes", "show", "reference") == 0
    assert "# Neurons that every pruned block keeps at least." in capsys.readouterr().out
    assert invoke(monkeypatch, "recipes", "validate", "reference") == 0
    assert invoke(monkeypatch, "recipes", "copy", "reference", str(tmp_path / "mine.yaml")) == 0
    assert invoke(monkeypatch, "recipes", "validate", str(tmp_path / "mine.yaml")) == 0
    assert invoke(monkeypatch, "recipes", "copy", "reference", str(tmp_path / "mine.yaml")) == 2


def test_placeholders_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["recipes", "validate"], ["run"]):
        assert invoke(monkeypatch, *command, "own-checkpoint") == 2
        assert "model.name is still the placeholder 'path/to/checkpoint-folder'" in capsys.readouterr().err
        assert invoke(monkeypatch, *command, "own-checkpoint", "model.name=demo") == 2
        assert "data.source is still the placeholder 'path/to/data'" in capsys.readouterr().err
    assert invoke(monkeypatch, "recipes", "validate", "own-checkpoint", "model.name=demo", "data.source=demo") == 0


def test_recipes_schema_prints_the_schema_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(monkeypatch, "recipes", "schema") == 0
    assert "prune" in json.loads(capsys.readouterr().out)["properties"]


def test_recipes_list_prints_what_each_recipe_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(monkeypatch, "recipes", "list") == 0
    printed = capsys.readouterr().out
    assert "Prune your own fine-tuned checkpoint on your own images." in printed
    assert "yaml-language-server" not in printed


def test_export_prints_a_row_per_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--torch-export", "--data", str(folder / "data"), "--output", str(folder / "out"), "--repeats", "2"]
    assert invoke(monkeypatch, "export", str(folder / "model"), *options, "--num-images", "6") == 0
    assert "model.pt2" in capsys.readouterr().out
    assert sorted(file.name for file in (folder / "out").iterdir()) == ["export.json", "model.pt2"]
    assert invoke(monkeypatch, "export", str(folder / "model"), "--torch-export", "--int8") == 2
    assert "int8 is available in ONNX only" in capsys.readouterr().err
