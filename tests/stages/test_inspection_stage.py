"""`pathprune inspect` on the tiny model: what it measures, shows, and does not measure again."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import NAMES, tiny_recipe

from pathprune.cli import main
from pathprune.inspection import PATH_KINDS, Effects, PathMeasure, PathMeasures
from pathprune.mining import PathSet
from pathprune.recipe import Recipe
from pathprune.report.findings import Findings
from pathprune.report.inspection import build_effect_table, compose_inspection_verdict
from pathprune.report.page import Cell
from pathprune.stages import inspection
from pathprune.stages.inspection import inspect_recipe, thumbnail


def inspected_recipe(folder: Path, **changes: Any) -> Recipe:
    inspect = {"num_images": 6, "random_paths": 2, "neurons_per_block": 2, "images_per_neuron": 3}
    return tiny_recipe(folder, **{"mine": {"num_images": 12, "nodes": 2}, "inspect": inspect, **changes})


def test_the_findings_are_those_of_the_mined_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = inspect_recipe(inspected_recipe(folder)).findings
    paths = PathSet.load(folder / "run" / "mined" / "class" / "paths.parquet")
    assert (found.num_images, found.num_mined, found.class_names) == (6, 12, tuple(NAMES))
    for view in found.neurons:
        on_path = paths.paths[:, view.block, 0] == view.neuron
        assert view.share == pytest.approx(float(on_path.double().mean()))
        for name, share in view.classes:
            own = paths.labels == NAMES.index(name)
            assert share == pytest.approx(float(on_path[own].double().mean()))
        assert len(view.pictures) == 3
    assert {view.block for view in found.neurons} == {0, 1}
    same = [
        float((paths.paths[a] == paths.paths[b]).double().mean())
        for a in range(12)
        for b in range(12)
        if a != b and paths.labels[a] == paths.labels[b] == 0
    ]
    assert float(found.overlap_CC[0, 0]) == pytest.approx(sum(same) / len(same))
    measures = found.measures
    assert set(measures.by_kind) == {"jas", "activation", "influence-pattern", "random"}
    assert (measures["jas"].jas >= measures["random"].jas).double().mean() > 0.5
    monkeypatch.setattr(inspection, "measure_effects", refuse)
    monkeypatch.setattr(inspection, "find_top_images", refuse)
    again = inspect_recipe(inspected_recipe(folder)).findings.measures.to_tensors()
    assert again.keys() == measures.to_tensors().keys()
    for name, values in measures.to_tensors().items():
        assert torch.equal(again[name], values)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed again")


def test_the_command_prints_four_tables_and_writes_a_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tiny.yaml").write_text(inspected_recipe(folder).to_yaml(), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["pathprune", "inspect", str(folder / "tiny.yaml")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    printed = capsys.readouterr().out
    for words in ("Joint attribution score", "Points gained or lost", "in common", "Neurons on most paths", "Removing"):
        assert words in printed
    html = (folder / "run" / "inspect.html").read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 2 * 2 * 3
    assert "<script" not in html
    assert (folder / "run" / "figures" / "shared-paths.svg").exists()


def test_a_model_without_a_class_token_is_inspected_at_all_tokens(folder: Path) -> None:
    args = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 12, "num_heads": 2}
    pooled = {"name": "vit_tiny_patch16_224", "pretrained": False, "num_classes": 3}
    model = {**pooled, "args": {**args, "global_pool": "avg", "class_token": False}}
    found = inspect_recipe(inspected_recipe(folder, model=model)).findings
    assert found.tokens == "all"
    assert found.measures["jas"].removed.probability.abs().max() > 0


def findings(path_effect: float, random_effect: float, *, spread: float = 0.01) -> Findings:
    """Findings in which removal changes the probability by these amounts, on average."""
    wobble = spread * torch.linspace(-1, 1, 40).double()
    same_N = torch.full((40,), random_effect).double()
    effects = Effects(same_N, same_N)
    by_kind = {kind: PathMeasure(torch.ones(40).double(), effects, effects) for kind in PATH_KINDS}
    by_kind["jas"] = replace(by_kind["jas"], removed=Effects(path_effect + wobble, same_N))
    overlap_CC = torch.eye(2).double()
    return Findings("x", "class", ("cat", "dog"), PathMeasures(by_kind), overlap_CC, [0, 1], 40, [])


def test_an_effect_is_called_one_only_where_its_interval_leaves_zero_out() -> None:
    for effects, verb in (((-0.2, -0.1), "lowers"), ((0.2, 0.1), "raises")):
        sentence = compose_inspection_verdict(findings(*effects))
        assert sentence.startswith(f"Removing the located path {verb} the class probability by 10.00 points [")
    tie = findings(-0.1, -0.1, spread=0.5)
    assert "change the class probability alike" in compose_inspection_verdict(tie)
    cells = [table.rows[0][1] for table in (build_effect_table(findings(-0.2, -0.1)), build_effect_table(tie))]
    assert [cell.tone for cell in cells if isinstance(cell, Cell)] == ["bad", ""]
    assert isinstance(cells[0], Cell)
    assert cells[0].text == "−20.00"


@pytest.mark.parametrize(("size", "expected"), [((8, 8), (64, 64)), ((500, 250), (64, 32)), ((30, 20), (60, 40))])
def test_thumbnails_are_small_and_keep_their_proportions(size: tuple[int, int], expected: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    with Image.open(io.BytesIO(thumbnail(Image.fromarray(pixels)))) as made:
        assert made.size == expected
