"""Backends that run a model on a batch of images: eager, compiled by torch, and ONNX Runtime."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathprune.export.formats import write_onnx

BACKENDS = ("eager", "compiled", "onnxruntime")


class BackendError(ValueError):
    """The backend cannot run this model on this machine."""


def build_runner(model: nn.Module, images: Tensor, *, backend: str) -> Callable[[], object]:
    """Return a function that runs a copy of `model` once on `images` `[B, C, H, W]`.

    The copy has the images' device and dtype. The first call may compile. Raises `BackendError` with the reason where
    the backend cannot run here, and `ValueError` for an unknown backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend '{backend}'; choose from {', '.join(BACKENDS)}")
    placed = copy.deepcopy(model).to(images.device, images.dtype).eval()
    if backend == "onnxruntime":
        return _session_run(placed, images)
    forward: Any = torch.compile(placed, dynamic=False) if backend == "compiled" else placed

    @torch.inference_mode()
    def run() -> object:
        return forward(images)

    if backend == "compiled":
        try:
            run()
        except Exception as error:  # torch.compile raises many types: no C++ compiler, an unknown operator …
            raise BackendError(f"torch.compile fails: {_first_line(error)}") from error
    return run


def missing_packages(backend: str) -> list[str]:
    """Return the packages that a backend needs and this environment lacks."""
    needed = ("onnx", "onnxscript", "onnxruntime") if backend == "onnxruntime" else ()
    return [name for name in needed if importlib.util.find_spec(name) is None]


def _session_run(model: nn.Module, images: Tensor) -> Callable[[], object]:
    missing = missing_packages("onnxruntime")
    if missing:
        raise BackendError(f"{', '.join(missing)} not installed; pip install 'pathprune[export]'")
    import onnxruntime

    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(images.device.type, "none")
    if provider not in onnxruntime.get_available_providers():
        raise BackendError(f"this onnxruntime has no provider for {images.device.type}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # the optimizer's warnings are not about the model
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        try:
            write_onnx(model, file, images, dynamic_batch=False)
        except Exception as error:  # the exporter raises many types
            raise BackendError(f"the export to ONNX fails: {_first_line(error)}") from error
        session = onnxruntime.InferenceSession(str(file), options, providers=[provider])
    binding = session.io_binding()
    index = images.device.index or 0
    value = onnxruntime.OrtValue.ortvalue_from_numpy(images.cpu().numpy(), images.device.type, index)
    binding.bind_ortvalue_input(session.get_inputs()[0].name, value)
    binding.bind_output(session.get_outputs()[0].name, images.device.type, index)
    return lambda: session.run_with_iobinding(binding)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
