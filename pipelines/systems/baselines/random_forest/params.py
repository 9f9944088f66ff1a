"""Hyperparameters of the random forest."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from pipelines.params import Section


class Params(Section):
    model_config = ConfigDict(title="random forest")

    tokens: bool = Field(False, description="the backbone's frozen tokens beside the filters")
    sigmas: tuple[float, ...] = Field((0.7, 1.6, 3.5, 6.0, 10.0), min_length=1, description="scales of the filters, pixels")
    prior_exponent: float = Field(0.25, ge=0, le=1, description="how far probabilities go back to the real class frequencies: 1 wholly, 0 not")
    trees: int = Field(50, ge=1)
    max_depth: int = Field(14, ge=1)
    min_samples_leaf: int = Field(4, ge=1)
    voxels_per_class: int = Field(3000, ge=1, description="sampled over all support cases together, and as many over the source cases")
    refinement: int = Field(0, ge=0, description="rounds of SEMI's correction by a case's own intensities: a control, what it does for a baseline")
    cache_mb: int = Field(1500, ge=0, description="memory for the filters of cases seen before, per process")

    @property
    def filters(self) -> bool:
        return True
