"""Hyperparameters of the U-Net, from scratch or fine-tuned from other sites."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from pipelines.params import Range, Section


class Params(Section):
    model_config = ConfigDict(title="U-Net")

    channels: tuple[int, ...] = Field((16, 32, 64, 128), min_length=2, description="per level; each level halves the resolution")
    residual_units: int = Field(2, ge=0)
    neighbours: int = Field(1, ge=0, description="slices above and below that are input channels too")
    steps: int = Field(600, ge=1)  # 200 without a mean of weights and mirrors: Dice 0.63 against 0.71 (docs/baselines.md)
    batch: int = Field(8, ge=1, description="patches a step")
    patch: int = Field(64, ge=16, description="edge of a training patch, pixels")
    on_lesion: float = Field(0.6, ge=0, le=1, description="share of patches centred on a labelled voxel")
    learning_rate: float = Field(4e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    average: float = Field(0.99, ge=0, lt=1, description="decay of the running mean of the weights that is kept")
    source_steps: int = Field(1500, ge=1, description="training on the cases of other sites, where there are any, before the support")
    fine_tune_steps: int = Field(200, ge=1, description="training on the support after that")
    fine_tune_rate: float = Field(1e-3, gt=0, description="learning rate then")
    rotation_degrees: float = Field(25.0, ge=0)
    scale: Range = (0.75, 1.33)
    elastic: float = Field(0.0, ge=0, description="sd of a smooth random displacement, pixels")
    gamma: Range = (0.7, 1.5)
    gain: Range = Field((0.8, 1.25), description="contrast, per modality")
    shift: float = Field(0.3, ge=0, description="brightness, per modality, sd of the foreground's intensities")
    noise: float = Field(0.15, ge=0, description="largest sd of added noise")
    modality_dropout: float = Field(0.2, ge=0, lt=1)
    mirror: bool = Field(True, description="a prediction is the mean over the slice and its mirror images")
