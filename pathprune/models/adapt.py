"""Adaptation of models: `adapt` finds a model's family and views the model through its neuron sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pathprune.models import timm_hierarchical, timm_vit, transformers_vit
from pathprune.models.seam import AdaptedModel, UnsupportedModelError

SUPPORTED = (
    "Supported: timm VisionTransformer (ViT, DeiT, DINOv2, CLIP, SigLIP, MAE …), Beit, Eva (EVA-02, DINOv3), "
    "SwinTransformer, SwinTransformerV2 and Hiera; Transformers ViT, DeiT, DINOv2, DINOv3, CLIP and SigLIP"
)

_FAMILIES: tuple[Callable[[nn.Module], AdaptedModel], ...] = (
    timm_vit.match,
    timm_hierarchical.match,
    transformers_vit.match,
)

_WRAPPERS = {
    "DistributedDataParallel": "pass the wrapped model: `model.module`",
    "DataParallel": "pass the wrapped model: `model.module`",
    "FullyShardedDataParallel": "adapt the model before it is sharded",
    "OptimizedModule": "pass the model before torch.compile: `model._orig_mod`",
    "PeftModel": "merge the adapters first: `model = model.merge_and_unload()`",
    "ScriptModule": "pass the eager model that was scripted",
    "GraphModule": "pass the eager model that was traced",
}


def adapt(model: nn.Module, *, check: bool = True) -> AdaptedModel:
    """View `model` through its neuron sites, without changing it.

    Families are recognised by the names of their parts, and a custom class may use these parts differently. With
    `check`, one random image must therefore give the same output block by block as in `model(image)`. Models on the
    meta device and models of unknown image size are not checked.

    Raises `UnsupportedModelError` with the reason and the supported families.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"adapt() takes a torch.nn.Module, got {type(model).__name__}")
    _refuse_wrapped(model)
    _refuse_changed_layers(model)
    _refuse_open_clip(model)
    reasons = []
    for match in _FAMILIES:
        try:
            adapted = match(model)
        except UnsupportedModelError as error:
            reasons.append(str(error))
            continue
        if check:
            _check_output(adapted)
        return adapted
    raise UnsupportedModelError(f"{type(model).__name__} is not supported: {'; '.join(reasons)}. {SUPPORTED}")


@torch.no_grad()
def _check_output(adapted: AdaptedModel) -> None:
    """Raise `UnsupportedModelError` unless the model gives the same output block by block as in one pass."""
    size, parameter = adapted.input_size, next(adapted.model.parameters())
    if size is None or parameter.device.type == "meta":
        return
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(0)).to(parameter)
    kind = type(adapted.model).__name__
    with evaluating(adapted.model):
        expected = adapted.model(image)
        if not isinstance(expected, Tensor) or expected.ndim != 2:
            shape = list(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
            raise UnsupportedModelError(
                f"{kind} gives {shape} for one image, not logits or an embedding [1, K]; give its head a pooling"
            )
        output = adapted.head(adapted.run_from(0, adapted.stem(image)))
    # only rounding may differ, where a fused operation is split
    tolerance = 100 * torch.finfo(expected.dtype).eps * max(1.0, float(expected.abs().nan_to_num().max()))
    if not torch.allclose(output, expected, rtol=0, atol=tolerance, equal_nan=True):
        raise UnsupportedModelError(
            f"{kind} has the parts of a {adapted.family}, but run block by block it gives another output (they differ "
            f"by up to {float((output - expected).abs().max()):.2g}): its forward does something else with the parts"
        )


def _refuse_wrapped(model: nn.Module) -> None:
    for cls in type(model).__mro__:
        if cls.__name__ in _WRAPPERS:
            raise UnsupportedModelError(f"the model is wrapped in {cls.__name__}; {_WRAPPERS[cls.__name__]}")


def _refuse_changed_layers(model: nn.Module) -> None:
    """Raise `UnsupportedModelError` for quantised, sharded or compiled layers, and for adapters."""
    for name, parameter in model.named_parameters():
        kind = type(parameter.data)
        if kind is not torch.Tensor:
            raise UnsupportedModelError(
                f"'{name}' is stored as {kind.__name__} (quantised or sharded); prune the plain float model"
            )
    for name, module in model.named_modules():
        kind = type(module)
        if getattr(module, "_compiled_call_impl", None) is not None or kind.__name__ == "OptimizedModule":
            raise UnsupportedModelError(
                f"'{name or kind.__name__}' is compiled; adapt the model first and compile the pruned one"
            )
        if hasattr(module, "lora_A") or hasattr(module, "lora_down"):
            raise UnsupportedModelError(
                f"'{name}' carries LoRA adapters; merge them into the base weights before adapting the model"
            )
        package = kind.__module__
        if "quantiz" in package.replace(".", " ") or package.startswith(("torch.ao.nn", "bitsandbytes")):
            raise UnsupportedModelError(
                f"'{name}' is quantised ({kind.__name__}); prune the float model first and quantise the result"
            )


def _refuse_open_clip(model: nn.Module) -> None:
    """Raise `UnsupportedModelError` for OpenCLIP's models and name timm's port, which can load their weights."""
    for tower, advice in ((model, "pass its `trunk`"), (getattr(model, "visual", None), "pass its `visual.trunk`")):
        if hasattr(tower, "trunk") and hasattr(tower, "head"):
            raise UnsupportedModelError(f"{type(model).__name__} is OpenCLIP's wrapper of a timm model: {advice}")
        if hasattr(tower, "conv1") and hasattr(getattr(tower, "transformer", None), "resblocks"):
            raise UnsupportedModelError(
                f"{type(model).__name__} is a class of OpenCLIP, which is not supported: load its weights into timm's "
                "port of the tower, such as pathprune.load_model('vit_base_patch16_clip_224', checkpoint="
                "'open_clip_pytorch_model.bin') for a ViT-B-16; timm.list_models('vit_*_clip_*') lists the ports"
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode without gradients to its parameters, in place; restore both on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def find_device(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter."""
    return next(model.parameters()).device
