"""The MLPs of Vision Transformers, found by the names of their parts: one hidden layer, plain or gated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from pathprune.models.seam import NeuronSite, Rows


@dataclass(frozen=True)
class _Layout:
    """Names of an MLP's parts: `down(norm(act(up)))`, or `down(norm(act(gate) * up))`.

    A gate and a value of the same name are packed: one layer has the rows of both.
    """

    up: str
    down: str
    act: str
    gate: str | None = None
    norm: str | None = None
    drops: tuple[str, ...] = ()  # after the activation and at the end: in eval mode they do nothing

    @property
    def parts(self) -> set[str]:
        return {name for name in (self.up, self.down, self.act, self.gate, self.norm, *self.drops) if name}


_DROPS = ("drop1", "drop2")
_LAYOUTS = (  # a gated MLP has the parts of a plain one too: it comes first
    _Layout(up="fc1_x", gate="fc1_g", act="act", norm="norm", down="fc2", drops=_DROPS),  # timm SwiGLU
    _Layout(up="up_proj", gate="gate_proj", act="act_fn", down="down_proj"),  # Transformers DINOv2 and DINOv3, gated
    _Layout(up="fc1", act="act", norm="norm", down="fc2", drops=_DROPS),  # timm Mlp
    _Layout(up="fc1", gate="fc1", act="act", norm="norm", down="fc2", drops=_DROPS),  # timm GluMlp, SwiGLUPacked
    _Layout(up="fc1", act="activation_fn", down="fc2"),  # Transformers ViT, DeiT, DINOv2, CLIP, SigLIP
    _Layout(up="up_proj", act="act_fn", down="down_proj"),  # Transformers DINOv3
)


@dataclass(frozen=True)
class Mlp:
    """An MLP as a hidden layer and a down-projection: `project(hidden(x))` equals `module(x)`."""

    module: Any
    layout: _Layout

    @property
    def gate_last(self) -> bool:
        """Whether the second half of a packed layer is the gate."""
        return bool(getattr(self.module, "gate_last", False))

    @property
    def down(self) -> nn.Linear:
        layer: nn.Linear = getattr(self.module, self.layout.down)
        return layer

    def hidden(self, x: Tensor) -> Tensor:
        """What the down-projection reads: `[..., D]` -> `[..., W]`."""
        module, layout = self.module, self.layout
        up = getattr(module, layout.up)(x)
        act = getattr(module, layout.act)
        if layout.gate is None:
            u = act(up)
        elif layout.gate == layout.up:
            first, second = up.chunk(2, dim=-1)
            u = first * act(second) if self.gate_last else act(first) * second
        else:
            u = act(getattr(module, layout.gate)(x)) * up
        for name in (*layout.drops[:1], layout.norm):
            u = getattr(module, name)(u) if name else u
        hidden: Tensor = u
        return hidden

    def project(self, u: Tensor) -> Tensor:
        """The MLP's output: `[..., W]` -> `[..., D]`."""
        y: Tensor = self.down(u)
        for name in self.layout.drops[1:]:
            y = getattr(self.module, name)(y)
        return y

    def site(self, name: str, block: int) -> NeuronSite:
        """The MLP's neurons; `name` is that of the MLP within the model."""
        module, layout = self.module, self.layout
        up = getattr(module, layout.up)
        if layout.gate is None:
            rows: tuple[Rows, ...] = (Rows(up),)
        elif layout.gate == layout.up:
            rows = (Rows(up, 0), Rows(up, self.down.in_features))
            rows = rows[::-1] if self.gate_last else rows
        else:
            rows = (Rows(getattr(module, layout.gate)), Rows(up))
        norm = getattr(module, layout.norm) if layout.norm else None
        return NeuronSite(
            name=f"{name}.{layout.down}",
            block=block,
            down=self.down,
            rows=rows,
            act=getattr(module, layout.act),
            norm=None if isinstance(norm, nn.Identity) else norm,
        )


def find_mlp(module: Any) -> Mlp | str:
    """View `module` as an MLP; otherwise say in a few words what it is, to go on from "has a"."""
    kind = type(module).__name__
    parts = {name for name, part in module.named_children() if not isinstance(part, nn.Dropout)}
    for layout in _LAYOUTS:
        if parts != layout.parts - set(layout.drops) or not all(hasattr(module, name) for name in layout.parts):
            continue
        mlp = Mlp(module, layout)
        layers = [getattr(module, name) for name in (layout.up, layout.gate, layout.down) if name]
        if not all(isinstance(layer, nn.Linear) for layer in layers):
            return f"{kind} whose {layout.up} and {layout.down} are not plain nn.Linear layers"
        if any(is_parametrized(layer) for layer in layers):
            return f"{kind} with parametrised weights; remove the parametrisation first"
        if any(True for _ in getattr(module, layout.act).parameters()):
            return f"{kind} whose activation has weights of its own"
        if layout.norm and not isinstance(getattr(module, layout.norm), nn.Identity | nn.LayerNorm):
            norm = type(getattr(module, layout.norm)).__name__
            return f"{kind} with a {norm} between its layers, where only a LayerNorm can be narrowed"
        if layers[0].out_features == mlp.down.in_features * (2 if layout.gate == layout.up else 1):
            return mlp
    return f"{kind} with the parts {', '.join(sorted(parts)) or 'none'}, none of the known MLPs"
