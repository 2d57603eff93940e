"""Backends give the model's own answers, or say why they cannot."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from pathprune.bench import backends
from pathprune.bench.backends import BackendError, build_runner

IMAGES = torch.randn(2, 3, 8, 8)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    args = {"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 2, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", **args).train()


def test_eager_runs_a_copy_in_eval_mode(model: nn.Module) -> None:
    logits = build_runner(model, IMAGES, backend="eager")()
    assert isinstance(logits, torch.Tensor)
    assert model.training
    assert torch.equal(logits, model.eval()(IMAGES))
    model.train()


def test_compiled_runs_what_torch_compiles(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: compiled.append(module) or module)
    build_runner(model, IMAGES, backend="compiled")()
    assert len(compiled) == 1

    def no_compiler(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda module, **_: no_compiler)
    with pytest.raises(BackendError, match=r"^torch.compile fails: no C\+\+ compiler$"):
        build_runner(model, IMAGES, backend="compiled")


def test_onnx_runtime_gives_the_same_logits(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    kept = []
    run = onnxruntime.InferenceSession.run_with_iobinding
    monkeypatch.setattr(
        onnxruntime.InferenceSession,
        "run_with_iobinding",
        lambda session, binding: run(session, binding) or kept.append(binding.copy_outputs_to_cpu()[0]),
    )
    build_runner(model, IMAGES, backend="onnxruntime")()
    torch.testing.assert_close(torch.from_numpy(kept[0]), model.eval()(IMAGES).detach(), rtol=1e-4, atol=1e-5)


def test_what_is_missing_is_said_with_what_to_install(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "missing_packages", lambda _: ["onnxscript"])
    with pytest.raises(BackendError, match=r"onnxscript not installed; pip install 'pathprune\[export\]'"):
        build_runner(model, IMAGES, backend="onnxruntime")
    with pytest.raises(ValueError, match="unknown backend 'tensorrt'; choose from eager, compiled, onnxruntime"):
        build_runner(model, IMAGES, backend="tensorrt")
