"""The kinds of file: how each is written, and how it is run.

Inputs `images` `[B, C, H, W]` and outputs `logits` `[B, K]` are float32 in all of them, so that one file can take
another's place; *half* and *int8* are what is between.
"""

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
Runner = Callable[[Tensor], Tensor]  # images -> logits

_FOR_ONNX = ("onnx", "onnxscript", "onnxruntime")
_INT8_LAYERS = ["MatMul", "Gemm"]  # the patch embedding stays in float32: it is small, and costs accuracy


class ExportError(ValueError):
    """The model cannot be exported as asked, or the exported file does not answer as the model does."""


@dataclass(frozen=True)
class Format:
    """One kind of file."""

    runtime: Runtime
    precision: Precision = "float32"

    @property
    def file(self) -> str:
        ending = ".onnx" if self.runtime == "onnx" else ".pt2"
        return f"model{'' if self.precision == 'float32' else f'.{self.precision}'}{ending}"

    def write(self, model: nn.Module, file: Path, *, example: Tensor, dynamic_batch: bool) -> None:
        """Write `model` for batches like `example` or, with `dynamic_batch`, of any size.

        int8 is made from the float32 file, which must be there already.
        """
        if self.precision == "int8":
            _quantize(file.with_name(Format(self.runtime).file), file)
            return
        graph = _InHalf(model) if self.precision == "half" else model
        write = write_onnx if self.runtime == "onnx" else _write_program
        write(graph, file, example, dynamic_batch)

    def open(self, file: Path) -> Runner:
        """A function that runs the file on the CPU, with as many threads as torch has."""
        return _open_onnx(file) if self.runtime == "onnx" else _open_program(file)


def choose_formats(*, onnx: bool, torch_export: bool, half: bool = False, int8: bool = False) -> list[Format]:
    """The files that are asked for, always one in float32; raises `ExportError` where one cannot be made here."""
    if not onnx and not torch_export:
        raise ExportError("nothing to export to; choose ONNX, torch.export or both")
    if int8 and not onnx:
        raise ExportError("int8 is written to ONNX only; ask for ONNX too")
    missing = [name for name in _FOR_ONNX if find_spec(name) is None]
    if onnx and missing:
        raise ExportError(f"export to ONNX needs {', '.join(missing)}: pip install 'pathprune[export]'")
    runtimes: dict[Runtime, bool] = {"onnx": onnx, "torch-export": torch_export}
    precisions: dict[Precision, bool] = {"float32": True, "half": half, "int8": int8}
    return [
        Format(runtime, precision)
        for runtime, runtime_asked in runtimes.items()
        for precision, precision_asked in precisions.items()
        if runtime_asked and precision_asked and (precision != "int8" or runtime == "onnx")
    ]


class _InHalf(nn.Module):
    """A copy of `model` that computes in float16, between a float32 input and a float32 output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half()
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.half())
        return logits.float()


class _PlainAttention(TorchFunctionMode):
    """Attention over tensors of other than four dimensions step by step: fused, the ONNX exporter does not take it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_attended if func is scaled_dot_product_attention else func)(*args, **(kwargs or {}))


def _attended(query: Tensor, *others: Any, **options: Any) -> Tensor:
    if query.ndim == 4:
        return scaled_dot_product_attention(query, *others, **options)
    attended: Tensor = torch.ops.aten._scaled_dot_product_attention_math(query, *others, **options)[0]
    return attended


def _shapes(dynamic_batch: bool) -> Any:
    return ({0: torch.export.Dim("batch")},) if dynamic_batch else None


def write_onnx(model: nn.Module, file: Path, example: Tensor, dynamic_batch: bool) -> None:
    """Write `model` as one ONNX file, for the batch size of `example` `[B, C, H, W]` or for any."""
    with _quiet("torch.onnx", "onnxscript", "onnx_ir"), _PlainAttention():
        torch.onnx.export(
            model,
            (example,),
            file,
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=_shapes(dynamic_batch),
            external_data=False,
            verbose=False,
        )


def _write_program(model: nn.Module, file: Path, example: Tensor, dynamic_batch: bool) -> None:
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=_shapes(dynamic_batch)), file)


def _quantize(full: Path, file: Path) -> None:
    """Write `full` with int8 weights, a scale per output channel; activations are quantised as they come."""
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    prepared = full.with_suffix(".prepared.onnx")
    with _quiet(None):
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
def _quiet(*loggers: str | None) -> Iterator[None]:
    """Keep what libraries say of their own steps off the terminal; errors still come through."""
    levels = [(logger := logging.getLogger(name), logger.level) for name in loggers]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
