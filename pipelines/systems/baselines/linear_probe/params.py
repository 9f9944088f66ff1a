"""Hyperparameters of the linear probe."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from pipelines.params import Section


class Params(Section):
    model_config = ConfigDict(title="linear probe")

    raw: bool = Field(False, description="the random forest's multi-scale filters beside the tokens")
    strengths: tuple[float, ...] = Field((0.001, 0.01, 0.1), min_length=1, description="inverse strengths C of the penalty to choose from")
    prior_exponents: tuple[float, ...] = Field((0.0, 0.25, 0.5, 0.75, 1.0), min_length=1,
                                               description="how far probabilities go back to the real class frequencies, to choose from")
    voxels_per_class: int = Field(3000, ge=1, description="sampled over all support cases together, and as many over the source cases")
    judged_voxels: int = Field(8000, ge=1, description="of a case left out, on which the choices are judged")
    iterations: int = Field(300, ge=1, description="at most, of the solver")
    sigmas: tuple[float, ...] = Field((0.7, 1.6, 3.5, 6.0, 10.0), min_length=1, description="scales of the filters, pixels")
    refinement: int = Field(0, ge=0, description="rounds of SEMI's correction by a case's own intensities: a control, what it does for a baseline")
    cache_mb: int = Field(1500, ge=0, description="memory for the filters of cases seen before, per process")

    @property
    def tokens(self) -> bool:
        return True

    @property
    def filters(self) -> bool:
        return self.raw
