"""Inspection section of a recipe."""

from __future__ import annotations

from pydantic import Field

from pathprune.section import Section


class InspectConfig(Section):
    """Numbers of inspected images and neurons."""

    num_images: int = Field(100, ge=2, description="mined images whose paths are compared, removed and enhanced")
    random_paths: int = Field(10, ge=1, description="random paths per image, to compare with located paths")
    neurons_per_block: int = Field(3, ge=1, description="most used neurons shown per block")
    images_per_neuron: int = Field(6, ge=1, description="mined images shown per neuron, by highest activation")
