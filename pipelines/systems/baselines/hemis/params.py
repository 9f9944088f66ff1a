"""Hyperparameters of the HeMIS-style fusion network: the U-Net's, and its branches'."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from pipelines.systems.baselines.unet.params import Params as UNetParams


class Params(UNetParams):
    model_config = ConfigDict(title="HeMIS")

    branch: int = Field(16, ge=1, description="channels of each modality's branch")
    modality_dropout: float = Field(0.35, ge=0, lt=1)
