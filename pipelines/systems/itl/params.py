"""Hyperparameters of ITL and of the baselines that are the same network without it: SEMI's own, and how the next site is learned."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from pipelines.systems.semi.params import Params as SemiParams


class Params(SemiParams):
    model_config = ConfigDict(title="ITL")

    # SEMI's network on a smaller budget, because a fit may learn several sites one after another
    steps: int = Field(100, ge=1, description="of every site")
    batch: int = Field(8, ge=1, description="patches a step")
    views: int = Field(0, ge=0, description="augmented copies of shots that are encoded anew, over all shots of a site together")
    encoder: Literal["frozen"] = "frozen"
    members: Literal[1] = 1
    context: Literal[0] = 0
    self_training: Literal[0] = 0
    # the next site
    method: Literal["itl", "sequential", "ewc", "lwf", "replay"] = Field("itl", description="the others are baselines of the same network and budget")
    next_rate: float = Field(6e-3, gt=0, description="learning rate at every site but the first")
    temperature: float = Field(2.0, gt=0, description="T of the distillation (itl, lwf)")
    new_share: float = Field(0.5, gt=0, lt=1, description="a before it is learned: the share of the new encoder in the mix (itl)")
    distillation: float = Field(1.0, ge=0, description="l1 of ITL, and the weight of LwF")
    distilled: Literal["right", "all"] = Field("all", description="voxels that are distilled (itl): those that the old model labels rightly, or all")
    source_head: float = Field(0.5, ge=0, description="l2: how much the mixed features have to suit the earlier sites' head (itl)")
    closeness: float = Field(0.1, ge=0, description="l3: how much the encoder has to stay where it was (itl)")
    anchor: float = Field(0.0, ge=0, description="weight of EWC's penalty beside the method's own loss; ours (itl)")
    ewc: float = Field(1.0, ge=0, description="lambda of the penalty (ewc)")
    fisher_batches: int = Field(20, ge=1, description="batches that the Fisher information is measured on after a site (ewc, itl with an anchor)")
    replay_cases: int = Field(2, ge=1, description="cases of every site whose samples the model keeps (replay)")
