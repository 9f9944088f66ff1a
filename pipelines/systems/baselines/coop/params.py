"""Hyperparameters of CoOp."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from pipelines.params import Section


class Params(Section):
    model_config = ConfigDict(title="CoOp")

    context: int = Field(4, ge=1, le=16, description="learned words before the class's text, where the backbone can read them")
    class_specific: bool = Field(True, description="words of its own for each class; false: each modality's classes share them")
    tau: float = Field(0.07, gt=0, description="temperature of the similarities")
    steps: int = Field(200, ge=1)
    batch: int = Field(512, ge=1, description="voxels a step")
    learning_rate: float = Field(1e-2, gt=0)
    modality_dropout: float = Field(0.2, ge=0, lt=1)
    prior_exponents: tuple[float, ...] = Field((0.0, 0.25, 0.5, 0.75, 1.0), min_length=1,
                                               description="how far probabilities go back to the real class frequencies, to choose from")
    voxels_per_class: int = Field(3000, ge=1, description="sampled over all support cases together, and as many over the source cases")
    judged_voxels: int = Field(4000, ge=1, description="of a case left out, on which the choice is judged")
