"""What is looked at when a model is inspected, as a recipe says it."""

from __future__ import annotations

from pydantic import Field

from pathprune.section import Section


class InspectConfig(Section):
    """How many images and neurons."""

    num_images: int = Field(100, ge=2, description="mined images whose paths are compared, removed and enhanced")
    random_paths: int = Field(10, ge=1, description="random paths per image that a located one is compared with")
    neurons_per_block: int = Field(3, ge=1, description="most used neurons shown of each block")
    images_per_neuron: int = Field(6, ge=1, description="mined images shown for each of them, the most exciting")
