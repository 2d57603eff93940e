"""The `inspect` section of a recipe."""

from __future__ import annotations

from pydantic import Field

from pathprune.section import Section


class InspectConfig(Section):
    """Extra settings of `pathprune inspect`."""

    num_images: int = Field(100, ge=2, description="Mined images whose paths are compared, removed and enhanced.")
    random_paths: int = Field(10, ge=1, description="Random paths per image to compare the located path with.")
    neurons_per_block: int = Field(3, ge=1, description="Most used neurons to show per block.")
    images_per_neuron: int = Field(6, ge=1, description="Mined images to show per neuron: those that excite it most.")
