"""Find the family that a model belongs to, and view the model through its neuron sites."""

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
    """View `model` through its neuron sites; the model itself is not changed.

    With `check`, one random image must give the same output in steps as in one go: the structure is found by the names
    of its parts, and a class of one's own may do something else with them. Models on the meta device, and those that do
    not tell their image size, are not checked.

    Raises `UnsupportedModelError` naming what was found and which families are supported.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"adapt() takes a torch.nn.Module, got {type(model).__name__}")
    _refuse_wrapped(model)
    _refuse_open_clip(model)
    reasons = []
    for match in _FAMILIES:
        try:
            adapted = match(model)
        except UnsupportedModelError as error:
            reasons.append(str(error))
            continue
        if check:
            _check_steps(adapted)
        return adapted
    raise UnsupportedModelError(f"{type(model).__name__} is not supported: {'; '.join(reasons)}. {SUPPORTED}")


@torch.no_grad()
def _check_steps(adapted: AdaptedModel) -> None:
    size, parameter = adapted.input_size, next(adapted.model.parameters())
    if size is None or parameter.device.type == "meta":
        return
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(0)).to(parameter)
    kind = type(adapted.model).__name__
    with evaluating(adapted.model):
        whole = adapted.model(image)
        if not isinstance(whole, Tensor) or whole.ndim != 2:
            shape = list(whole.shape) if isinstance(whole, Tensor) else type(whole).__name__
            raise UnsupportedModelError(
                f"{kind} gives {shape} for one image, not logits or an embedding [1, K]; give its head a pooling"
            )
        in_steps = adapted.head(adapted.run_from(0, adapted.stem(image)))
    # rounding differs where a fused operation is taken apart; a missing part is another matter
    tolerance = 100 * torch.finfo(whole.dtype).eps * max(1.0, float(whole.abs().nan_to_num().max()))
    if not torch.allclose(in_steps, whole, rtol=0, atol=tolerance, equal_nan=True):
        raise UnsupportedModelError(
            f"{kind} has the parts of a {adapted.family}, but run part by part it gives another output (it differs by "
            f"up to {float((in_steps - whole).abs().max()):.2g}): its forward does something else with them"
        )


def _refuse_wrapped(model: nn.Module) -> None:
    for cls in type(model).__mro__:
        if cls.__name__ in _WRAPPERS:
            raise UnsupportedModelError(f"the model is wrapped in {cls.__name__}; {_WRAPPERS[cls.__name__]}")
    for name, parameter in model.named_parameters():
        kind = type(parameter.data)
        if kind is not torch.Tensor:
            raise UnsupportedModelError(
                f"'{name}' is stored as {kind.__name__} (quantised or sharded); prune the plain float model"
            )
    for name, module in model.named_modules():
        if getattr(module, "_compiled_call_impl", None) is not None or type(module).__name__ == "OptimizedModule":
            raise UnsupportedModelError(
                f"'{name or type(module).__name__}' is compiled; adapt the model first and compile the pruned one"
            )
        if hasattr(module, "lora_A") or hasattr(module, "lora_down"):
            raise UnsupportedModelError(
                f"'{name}' carries LoRA adapters; merge them into the base weights before adapting the model"
            )
        kind = type(module)
        package = kind.__module__
        if "quantiz" in package.replace(".", " ") or package.startswith(("torch.ao.nn", "bitsandbytes")):
            raise UnsupportedModelError(
                f"'{name}' is quantised ({kind.__name__}); prune the float model first and quantise the result"
            )


def _refuse_open_clip(model: nn.Module) -> None:
    """Name what does it instead: timm has all of OpenCLIP's Vision Transformers, and reads their weights."""
    for tower, wanted in ((model, "pass its `trunk`"), (getattr(model, "visual", None), "pass its `visual.trunk`")):
        if hasattr(tower, "trunk") and hasattr(tower, "head"):
            raise UnsupportedModelError(f"{type(model).__name__} is OpenCLIP's around a timm model: {wanted}")
        if hasattr(tower, "conv1") and hasattr(getattr(tower, "transformer", None), "resblocks"):
            raise UnsupportedModelError(
                f"{type(model).__name__} is OpenCLIP's own, whose classes are not supported: load its weights into "
                "timm's port of the tower, pathprune.load_model('vit_base_patch16_clip_224', checkpoint='open_clip_"
                "pytorch_model.bin') for a ViT-B-16; timm.list_models('vit_*_clip_*') lists them"
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold `model` in eval mode, with gradients to its parameters off; both are restored on leaving."""
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


def model_device(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device
