"""A few more steps on what a network is sure of in the very case that it is to predict (transductive; off unless params ask). Ours."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch

from pipelines.cohort import Case
from pipelines.systems.protocol import Task
from pipelines.systems.semi.batches import PatchSampler
from pipelines.systems.semi.learning import loss_of, optimise
from pipelines.systems.semi.model import Semi
from pipelines.systems.semi.params import Params

#: A voxel is learnt from when its class is at least this likely.
SURE = 0.9
#: Of the rate of the training proper: there is much to forget and little to learn.
SLOWER = 0.1


def self_trained(network: Semi, case: Case, probabilities: np.ndarray, task: Task, params: Params) -> Semi:
    """A copy of `network` after `params.self_training` steps on the sure voxels of `probabilities` `(1 + K, S, H, W)`."""
    learner = copy.deepcopy(network).train()
    sampler = PatchSampler([replace(case, dseg=probabilities.argmax(0).astype(np.uint8))], task, params.model_copy(update={"views": 0}))
    unsure = torch.from_numpy(probabilities.max(0) < SURE)
    sampler.hide(unsure)
    optimise(learner.parameters(), lambda: loss_of(learner, sampler.batch(), {}, params), steps=params.self_training,
             rate=SLOWER * params.learning_rate, decay=params.weight_decay)
    return learner.eval()
