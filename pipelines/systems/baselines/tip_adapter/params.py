"""Hyperparameters of Tip-Adapter."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from pipelines.params import Section


class Params(Section):
    model_config = ConfigDict(title="Tip-Adapter")

    space: Literal["tokens", "aligned"] = Field("tokens", description="what the cache compares: all levels of tokens, or vectors in text space")
    fine_tune: bool = Field(True, description="Tip-Adapter-F: the keys are trained too; false: nothing is trained")
    keys_per_class: int = Field(128, ge=1, description="support voxels in the cache")
    alphas: tuple[float, ...] = Field((30.0, 100.0, 300.0, 1000.0), min_length=1, description="weights of the cache against the text, to choose from")
    betas: tuple[float, ...] = Field((1.0, 2.0, 5.0, 10.0), min_length=1, description="sharpness of the cache, to choose from")
    prior_exponents: tuple[float, ...] = Field((0.0, 0.25, 0.5, 0.75, 1.0), min_length=1,
                                               description="how far probabilities go back to the real class frequencies, to choose from")
    tau: float = Field(0.07, gt=0, description="temperature of the similarities to text")
    voxels_per_class: int = Field(3000, ge=1, description="sampled over all support cases together, and as many over the source cases")
    judged_voxels: int = Field(4000, ge=1, description="of a case left out, on which the choices are judged")
    steps: int = Field(200, ge=1, description="of the keys' training")
    batch: int = Field(256, ge=1, description="voxels a step")
    learning_rate: float = Field(1e-3, gt=0)
    trained_alpha: float = Field(100.0, gt=0, description="alpha while the keys are trained")
    trained_beta: float = Field(5.0, gt=0, description="beta while the keys are trained")
    modality_dropout: float = Field(0.2, ge=0, lt=1)
