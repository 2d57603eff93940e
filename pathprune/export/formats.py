"""Export formats: how a file is written and run.

In every format the input `images` `[B, C, H, W]` and the output `logits` `[B, K]` are float32, so that one file can
replace another. The precisions *half* and *int8* apply to the computation inside.
"""

# B images [B, C, H, W], K logits

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

Runtime = Literal["onnx", "torch-export"]
Precision = Literal["float32", "half", "int8"]
Runner = Callable[[Tensor], Tensor]
"""Runs an exported file: images -> logits."""

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_INT8_LAYERS = ["MatMul", "Gemm"]  # without the patch embedding: it is small, and int8 would cost accuracy


class ExportError(ValueError):
    """An export that is not possible, or a file that does not compute the model."""


@dataclass(frozen=True)
class Format:
    """An export format: a runtime and a precision."""

    runtime: Runtime
    precision: Precision = "float32"

    @property
    def file(self) -> str:
        extension = ".onnx" if self.runtime == "onnx" else ".pt2"
        return f"model{'' if self.precision == 'float32' else f'.{self.precision}'}{extension}"

    def write(self, model: nn.Module, file: Path, *, example: Tensor, dynamic_batch: bool) -> None:
        """Write `model` for the batch size of `example`, or for any batch size if `dynamic_batch`.

        An int8 file is quantised from the float32 file, which must already be in the same folder.
        """
        if self.precision == "int8":
            _quantize(file.with_name(Format(self.runtime).file), file)
            return
        graph = _HalfModel(model) if self.precision == "half" else model
        write = write_onnx if self.runtime == "onnx" else _write_program
        write(graph, file, example, dynamic_batch)

    def open(self, file: Path) -> Runner:
        """Return a function that runs the file on the CPU, with torch's number of threads."""
        return _open_onnx(file) if self.runtime == "onnx" else _open_program(file)


def choose_formats(*, onnx: bool, torch_export: bool, half: bool = False, int8: bool = False) -> list[Format]:
    """List the formats for each selected runtime: float32, then the selected lower precisions.

    Raises `ExportError` for no runtime, for int8 without ONNX, and if packages for ONNX are not installed.
    """
    if not onnx and not torch_export:
        raise ExportError("no export format given; choose ONNX, torch.export or both")
    if int8 and not onnx:
        raise ExportError("int8 is available in ONNX only; choose ONNX too")
    missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None]
    if onnx and missing:
        raise ExportError(f"export to ONNX needs {', '.join(missing)}: pip install 'pathprune[export]'")
    runtimes: dict[Runtime, bool] = {"onnx": onnx, "torch-export": torch_export}
    precisions: dict[Precision, bool] = {"float32": True, "half": half, "int8": int8}
    return [
        Format(runtime, precision)
        for runtime, has_runtime in runtimes.items()
        for precision, has_precision in precisions.items()
        if has_runtime and has_precision and (precision != "int8" or runtime == "onnx")
    ]


class _HalfModel(nn.Module):
    """A copy of `model` that computes in float16, with float32 input and output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half()
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.half())
        return logits.float()


class _UnfusedAttention(TorchFunctionMode):
    """Unfused attention for tensors without four dimensions, which the ONNX exporter cannot export fused."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_attend if func is scaled_dot_product_attention else func)(*args, **(kwargs or {}))


def _attend(query: Tensor, *others: Any, **options: Any) -> Tensor:
    if query.ndim == 4:
        return scaled_dot_product_attention(query, *others, **options)
    attended: Tensor = torch.ops.aten._scaled_dot_product_attention_math(query, *others, **options)[0]
    return attended


def _build_dynamic_shapes(dynamic_batch: bool) -> Any:
    return ({0: torch.export.Dim("batch")},) if dynamic_batch else None


def write_onnx(model: nn.Module, file: Path, example: Tensor, dynamic_batch: bool) -> None:
    """Write `model` as one ONNX file, for the batch size of `example` `[B, C, H, W]` or for any."""
    with _silence_loggers("torch.onnx", "onnxscript", "onnx_ir"), _UnfusedAttention():
        torch.onnx.export(
            model,
            (example,),
            file,
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=_build_dynamic_shapes(dynamic_batch),
            external_data=False,
            verbose=False,
        )


def _write_program(model: nn.Module, file: Path, example: Tensor, dynamic_batch: bool) -> None:
    program = torch.export.export(model, (example,), dynamic_shapes=_build_dynamic_shapes(dynamic_batch))
    torch.export.save(program, file)


def _quantize(full: Path, file: Path) -> None:
    """Write the float32 file `full` with int8 weights, one scale per output channel, and dynamic activations."""
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    prepared = full.with_suffix(".prepared.onnx")
    with _silence_loggers(None):
        quant_pre_process(full, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_dynamic(
            prepared, file, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=_INT8_LAYERS
        )
    prepared.unlink()


def _open_onnx(file: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return run


def _open_program(file: Path) -> Runner:
    module = torch.export.load(file).module()

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = module(images)
        return logits

    return run


@contextmanager
def _silence_loggers(*names: str | None) -> Iterator[None]:
    """Let only errors through the named loggers (None: the root logger); restore their levels on leaving."""
    levels = [(logger := logging.getLogger(name), logger.level) for name in names]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
