"""The MLPs of Vision Transformers with one hidden layer, plain or gated, recognised by the names of their parts."""

# D hidden dimension of the model, W neurons

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from pathprune.models.seam import NeuronSite, UnsupportedModelError, UpProjection


@dataclass(frozen=True)
class MlpParts:
    """Names of the parts of an MLP: `down(norm(act(up)))`, or `down(norm(act(gate) * up))`.

    If `gate` and `up` have the same name, they are packed: one layer holds the output rows of both.
    """

    up: str
    down: str
    act: str
    gate: str | None = None
    norm: str | None = None
    drops: tuple[str, ...] = ()  # dropouts after the activation and at the end; the identity in eval mode

    @property
    def names(self) -> set[str]:
        return {name for name in (self.up, self.down, self.act, self.gate, self.norm, *self.drops) if name}


_DROPS = ("drop1", "drop2")
_KNOWN_PARTS = (  # a separate gate first: a gated MLP also has all parts of a plain one
    MlpParts(up="fc1_x", gate="fc1_g", act="act", norm="norm", down="fc2", drops=_DROPS),  # timm SwiGLU
    MlpParts(up="up_proj", gate="gate_proj", act="act_fn", down="down_proj"),  # Transformers DINOv2 and DINOv3, gated
    MlpParts(up="fc1", act="act", norm="norm", down="fc2", drops=_DROPS),  # timm Mlp
    MlpParts(up="fc1", gate="fc1", act="act", norm="norm", down="fc2", drops=_DROPS),  # timm GluMlp, SwiGLUPacked
    MlpParts(up="fc1", act="activation_fn", down="fc2"),  # Transformers ViT, DeiT, DINOv2, CLIP, SigLIP
    MlpParts(up="up_proj", act="act_fn", down="down_proj"),  # Transformers DINOv3
)


@dataclass(frozen=True)
class Mlp:
    """An MLP as a hidden layer and a down-projection: `project(hidden(x))` equals `module(x)`."""

    module: Any
    parts: MlpParts

    @property
    def is_gate_last(self) -> bool:
        """True if the gate is the second half of a packed layer."""
        return bool(getattr(self.module, "gate_last", False))

    @property
    def down(self) -> nn.Linear:
        layer: nn.Linear = getattr(self.module, self.parts.down)
        return layer

    def hidden(self, x: Tensor) -> Tensor:
        """Compute the hidden activations, the input of the down-projection: `[..., D]` -> `[..., W]`."""
        module, parts = self.module, self.parts
        up = getattr(module, parts.up)(x)
        act = getattr(module, parts.act)
        if parts.gate is None:
            u = act(up)
        elif parts.gate == parts.up:
            first, second = up.chunk(2, dim=-1)
            u = first * act(second) if self.is_gate_last else act(first) * second
        else:
            u = act(getattr(module, parts.gate)(x)) * up
        for name in (*parts.drops[:1], parts.norm):
            u = getattr(module, name)(u) if name else u
        hidden: Tensor = u
        return hidden

    def project(self, u: Tensor) -> Tensor:
        """Compute the MLP's output from its hidden activations: `[..., W]` -> `[..., D]`."""
        y: Tensor = self.down(u)
        for name in self.parts.drops[1:]:
            y = getattr(self.module, name)(y)
        return y

    def build_site(self, name: str, block: int) -> NeuronSite:
        """Return the site of the MLP's neurons; `name` is the MLP's name in the model."""
        module, parts = self.module, self.parts
        up = getattr(module, parts.up)
        if parts.gate is None:
            ups: tuple[UpProjection, ...] = (UpProjection(up),)
        elif parts.gate == parts.up:
            ups = (UpProjection(up, 0), UpProjection(up, self.down.in_features))
            ups = ups[::-1] if self.is_gate_last else ups
        else:
            ups = (UpProjection(getattr(module, parts.gate)), UpProjection(up))
        norm = getattr(module, parts.norm) if parts.norm else None
        return NeuronSite(
            name=f"{name}.{parts.down}",
            block=block,
            down=self.down,
            ups=ups,
            act=getattr(module, parts.act),
            norm=None if isinstance(norm, nn.Identity) else norm,
        )


def find_mlp(module: Any) -> Mlp:
    """Recognise `module` as an MLP that can be pruned.

    Raises `UnsupportedModelError` with the reason, as a predicate of the block: "has a …".
    """
    kind = type(module).__name__
    present = {name for name, part in module.named_children() if not isinstance(part, nn.Dropout)}
    for parts in _KNOWN_PARTS:
        if present != parts.names - set(parts.drops) or not all(hasattr(module, name) for name in parts.names):
            continue
        mlp = Mlp(module, parts)
        _check_prunable(mlp)
        up: nn.Linear = getattr(module, parts.up)
        if up.out_features == mlp.down.in_features * (2 if parts.gate == parts.up else 1):
            return mlp
    names = ", ".join(sorted(present)) or "none"
    raise UnsupportedModelError(f"has a {kind} with the parts {names}, which matches none of the known MLPs")


def _check_prunable(mlp: Mlp) -> None:
    module, parts, kind = mlp.module, mlp.parts, type(mlp.module).__name__
    layers = [getattr(module, name) for name in (parts.up, parts.gate, parts.down) if name]
    if not all(isinstance(layer, nn.Linear) for layer in layers):
        raise UnsupportedModelError(f"has a {kind} whose {parts.up} and {parts.down} are not plain nn.Linear layers")
    if any(is_parametrized(layer) for layer in layers):
        raise UnsupportedModelError(f"has a {kind} with parametrised weights; remove the parametrisation first")
    if any(True for _ in getattr(module, parts.act).parameters()):
        raise UnsupportedModelError(f"has a {kind} whose activation has weights of its own")
    norm = getattr(module, parts.norm) if parts.norm else None
    if norm is not None and not isinstance(norm, nn.Identity | nn.LayerNorm):
        raise UnsupportedModelError(
            f"has a {kind} with a {type(norm).__name__} between its layers, where only a LayerNorm can be narrowed"
        )
