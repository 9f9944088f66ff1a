"""Hyperparameters of SEMI, among them the switches of its controls."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from pipelines.params import Section


class Params(Section):
    model_config = ConfigDict(title="SEMI")

    # alignment with text
    tau: float = Field(0.07, gt=0, description="temperature of the contrast and of the similarity maps")
    infonce_weight: float = Field(0.2, ge=0, description="0: control without the contrast")
    text: Literal["prompts", "random-orthonormal", "one-hot"] = Field("prompts", description="the last two: controls without language")
    context: int = Field(0, ge=0, description="learned words before each class's text (CoOp), or moved vectors where they cannot be read")
    backbone_alignment: bool = Field(True, description="projectors start at the backbone's own alignment, not at random")
    # sizes
    grid_stride: int = Field(4, ge=1, description="pixels per token of the grid that levels are brought to; a finer level is averaged")
    projector_width: int = Field(64, ge=1)
    decoder_width: int = Field(48, ge=1)
    # training
    steps: int = Field(150, ge=1)
    batch: int = Field(12, ge=1, description="patches a step")
    patch: int = Field(4, ge=1, description="edge of a patch, tokens")
    depth: int = Field(3, ge=1, description="slices of a patch")
    on_lesion: float = Field(0.3, ge=0, le=1, description="share of patches that hold a labelled voxel by design")
    learning_rate: float = Field(6e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    members: int = Field(1, ge=1, description="networks trained from other starts on the same shots; their probabilities are averaged")
    target_share: float = Field(0.5, ge=0, le=1, description="share of patches from the target site where other sites lend cases")
    average: float = Field(0.95, ge=0, lt=1, description="decay of the running mean of the weights that is kept")
    # the encoder
    encoder: Literal["frozen", "lora", "full"] = Field("frozen", description="lora: adapters on its last blocks; full: the control that unfreezes it")
    lora_rank: int = Field(8, ge=1)
    encoder_steps: int = Field(60, ge=1, description="further steps, on whole slices, in which encoder and network learn together")
    encoder_rate: float = Field(5e-4, gt=0)
    # augmentation
    modality_dropout: float = Field(0.15, ge=0, lt=1)
    token_jitter: float = Field(0.15, ge=0, description="sd of a gain and a shift of each token channel, per patch: another scanner")
    token_noise: float = Field(0.1, ge=0, description="sd of noise on each token, in sd of its channel")
    intensity_jitter: float = Field(0.15, ge=0, description="sd of gain and shift of the raw intensities, per patch and modality")
    intensity_dropout: float = Field(0.2, ge=0, lt=1, description="share of patches without raw intensities")
    views: int = Field(6, ge=0, description="augmented copies of shots that are encoded anew, over all shots together")
    view_slices: int = Field(10, ge=1, description="slices of such a copy")
    view_degrees: float = Field(20.0, ge=0, description="largest rotation")
    view_zoom: float = Field(1.25, ge=1, description="largest scaling, either way")
    view_contrast: float = Field(0.8, ge=0, description="largest log gamma; gain and shift vary in proportion")
    # prediction
    own_statistics: float = Field(1.0, ge=0, le=1, description="how far a case's tokens are standardised by their own mean and sd instead of the "
                                                               "support's (transductive)")
    refinement: int = Field(3, ge=0, description="rounds in which a case's own intensities correct what is predicted near lesions (transductive)")
    smallest_part: float = Field(0.0, ge=0, description="connected parts below this share of the support's smallest are taken away")
    mirrored: bool = Field(False, description="average with the prediction of the mirrored images, which are encoded anew")
    self_training: int = Field(0, ge=0, description="steps on what is predicted confidently of the case itself, before it is predicted again")
    # the raw-intensity skip
    sigmas: tuple[float, ...] = Field((1.0, 2.0, 4.0), description="scales of the smoothed intensities, pixels")
    asymmetry: bool = Field(True, description="difference from the mirrored half of the head, where slices have a left and a right")

    @model_validator(mode="after")
    def _context_goes_with(self):
        if self.context and (self.text != "prompts" or self.encoder != "frozen" or self.self_training):
            raise ValueError("context: learned words need text: prompts, and go with encoder: frozen and self_training: 0 only")
        return self
