"""Exported files: same predictions as the model, smaller than the dense model's, and no files left after an error."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import onnx
import pytest
import timm
import torch
from torch import Tensor, nn

from pathprune.export import ExportedFile, ExportError, Format, choose_formats, export_model, exporter, formats
from pathprune.models.adapt import adapt
from pathprune.pruning import make_plan, prune
from tests.families import FAMILIES

ALL_FORMATS = choose_formats(onnx=True, torch_export=True, half=True, int8=True)
ARGS = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}


def make_models() -> tuple[nn.Module, nn.Module]:
    """Build a pruned model and its dense model, with logits far enough apart to change predictions."""
    torch.manual_seed(0)
    dense = timm.create_model("vit_tiny_patch16_224", **ARGS).eval()
    for parameter in dense.parameters():
        nn.init.normal_(parameter, std=0.3)
    adapted = adapt(dense)
    scores = {site.name: torch.arange(site.width) + 1.0 for site in adapted.sites}
    return prune(adapted, plan=make_plan(scores, sites=adapted.sites, ratio=0.5)).model, dense


def draw_images(number: int = 12) -> Tensor:
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, ExportedFile]]:
    pruned, dense = make_models()
    folder = tmp_path_factory.mktemp("export") / "out"
    found = export_model(
        pruned,
        folder,
        formats=ALL_FORMATS,
        images=draw_images(),
        dense=dense,
        dynamic_batch=True,
        batch_size=5,
        repeats=3,
    )
    return folder, {each.file: each for each in found}


def test_every_file_is_written_and_listed_in_the_report(exported: tuple[Path, dict[str, ExportedFile]]) -> None:
    folder, found = exported
    names = ["model.onnx", "model.half.onnx", "model.int8.onnx", "model.pt2", "model.half.pt2"]
    assert list(found) == names
    assert sorted(file.name for file in folder.iterdir()) == sorted([*names, "export.json"])
    report = json.loads((folder / "export.json").read_text())
    assert [each["file"] for each in report["files"]] == names
    assert report["files"][0]["num_bytes"] == (folder / "model.onnx").stat().st_size == found["model.onnx"].num_bytes


def test_float32_files_agree_on_every_image_and_lower_precisions_on_most(
    exported: tuple[Path, dict[str, ExportedFile]],
) -> None:
    _, found = exported
    for name, difference in {
        "model.onnx": 1e-4,
        "model.pt2": 1e-4,
        "model.half.onnx": 0.1,
        "model.half.pt2": 0.1,
        "model.int8.onnx": 2.0,
    }.items():
        assert found[name].agreement >= (1.0 if difference < 0.01 else 0.75)
        assert found[name].max_logit_difference <= difference
    assert found["model.onnx"].max_logit_difference < found["model.half.onnx"].max_logit_difference
    assert found["model.half.onnx"].max_logit_difference < found["model.int8.onnx"].max_logit_difference


def test_pruning_makes_files_smaller_by_the_weights_of_the_removed_neurons(
    exported: tuple[Path, dict[str, ExportedFile]],
) -> None:
    _, found = exported
    removed = 2 * 64 * (32 + 1 + 32)  # for each neuron a row of fc1, its bias and a column of fc2
    for name, num_bytes in {"model.onnx": 4, "model.half.onnx": 2, "model.int8.onnx": 1, "model.pt2": 4}.items():
        dense = found[name].dense_num_bytes
        assert dense is not None
        assert dense - found[name].num_bytes == pytest.approx(num_bytes * removed, rel=0.15)
    assert found["model.half.onnx"].num_bytes < found["model.onnx"].num_bytes


def test_a_file_with_a_dynamic_batch_takes_any_batch_size(
    exported: tuple[Path, dict[str, ExportedFile]],
) -> None:
    folder, _ = exported
    pruned, _ = make_models()
    for name in ("model.onnx", "model.pt2"):
        run = next(each for each in ALL_FORMATS if each.file == name).open(folder / name)
        for number in (1, 2, 12):
            with torch.inference_mode():
                torch.testing.assert_close(run(draw_images(number)), pruned(draw_images(number)), rtol=0, atol=1e-4)


def test_attention_within_windows_is_exported(tmp_path: Path) -> None:
    model = FAMILIES["hiera"].make()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert all(block.attn.fused_attn for block in model.blocks)  # which the exporter cannot export
    (found,) = export_model(
        model, tmp_path / "out", formats=[Format("onnx")], images=images, dynamic_batch=True, batch_size=2, repeats=1
    )
    assert found.agreement == 1.0
    assert found.max_logit_difference < 1e-4


def test_input_and_output_are_float32_in_every_precision(exported: tuple[Path, dict[str, ExportedFile]]) -> None:
    folder, _ = exported
    for name in ("model.onnx", "model.half.onnx", "model.int8.onnx"):
        graph = onnx.load(folder / name).graph
        assert [value.name for value in (*graph.input, *graph.output)] == ["images", "logits"]
        assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}


def test_a_file_with_a_fixed_batch_is_compared_on_a_partial_batch(tmp_path: Path) -> None:
    pruned, _ = make_models()
    (found,) = export_model(
        pruned, tmp_path / "out", formats=[Format("torch-export")], images=draw_images(5), batch_size=2, repeats=1
    )
    assert (found.agreement, found.dense_num_bytes, found.speedup) == (1.0, None, None)
    with pytest.raises(Exception, match=r"batch|size|shape|guard|Guard"):
        Format("torch-export").open(tmp_path / "out" / "model.pt2")(draw_images(3))


def test_a_wrong_file_is_an_error_and_keeps_the_earlier_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned, dense = make_models()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text("earlier")
    monkeypatch.setattr(Format, "write", lambda self, model, file, **_: file.write_bytes(b"x"))
    monkeypatch.setattr(Format, "open", lambda self, file: dense)
    with pytest.raises(ExportError, match=r"model\.pt2 predicts another class than the model for \d+ of 12 images"):
        export_model(pruned, tmp_path / "out", formats=[Format("torch-export")], images=draw_images())
    monkeypatch.setattr(Format, "open", lambda self, file: lambda batch: dense(batch) * torch.nan)
    with pytest.raises(ExportError, match=r"model\.half\.pt2 gives logits that are not finite"):
        export_model(pruned, tmp_path / "out", formats=[Format("torch-export", "half")], images=draw_images())
    assert [file.read_text() for file in (tmp_path / "out").iterdir()] == ["earlier"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_speedups_are_paired_by_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned, dense = make_models()
    monkeypatch.setattr(
        Format, "write", lambda self, model, file, **_: file.write_bytes(b"x" * (2 - (model is pruned)))
    )
    monkeypatch.setattr(Format, "open", lambda self, file: pruned)
    times = {"model.pt2": (2.0, 2.0, 4.0), "dense model.pt2": (6.0, 4.0, 4.0)}
    monkeypatch.setattr(exporter, "time_in_turns", lambda calls, **_: {name: times[name] for name in calls})
    (found,) = export_model(
        pruned, tmp_path / "out", formats=[Format("torch-export")], images=draw_images(), dense=dense
    )
    assert (found.latency_ms, found.dense_latency_ms, found.speedup) == (2.0, 4.0, 2.0)
    assert found.speedup_spread == (1.5, 2.5)
    assert (found.num_bytes, found.dense_num_bytes) == (1, 2)


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ExportError, match="exists and is no earlier export"):
        export_model(make_models()[0], tmp_path, formats=ALL_FORMATS, images=draw_images())
    with pytest.raises(ExportError, match="a batch size of 13 needs at least as many images, got 12"):
        export_model(make_models()[0], tmp_path / "out", formats=ALL_FORMATS, images=draw_images(), batch_size=13)


def test_impossible_formats_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match="no export format given"):
        choose_formats(onnx=False, torch_export=False, half=True)
    with pytest.raises(ExportError, match="int8 is available in ONNX only"):
        choose_formats(onnx=False, torch_export=True, int8=True)
    monkeypatch.setattr(
        formats, "find_spec", lambda name: None if name == "onnxscript" else importlib.util.find_spec(name)
    )
    with pytest.raises(ExportError, match=r"needs onnxscript: pip install 'pathprune\[export\]'"):
        choose_formats(onnx=True, torch_export=False)
    assert [each.file for each in choose_formats(onnx=False, torch_export=True)] == ["model.pt2"]
