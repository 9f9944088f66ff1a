"""Linear probe: multinomial logistic regression on the frozen, standardised tokens of every modality, interpolated to voxels.

How much of frozen features is there to be read by a linear map is the usual yardstick of an encoder (Alain and Bengio 2017), and tuned this way a
hard few-shot baseline (Tian et al. 2020). The strength of the penalty and of the prior's correction are chosen anew in every fit, by leaving out
one support case at a time, or blocks of slices of a single one; nothing is taken from another cohort.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.systems.baselines.linear_probe.params import Params
from pipelines.systems.baselines.samples import Samples, folds, sampled_dice, scattered
from pipelines.systems.baselines.voxelwise import VoxelClassifier
from pipelines.systems.protocol import Task

MODEL = "linear.safetensors"
#: Features that hardly vary are left as they are: dividing by next to nothing would make noise of them.
SMALLEST_SD = 1e-3


@dataclass(frozen=True)
class Linear:
    """Log-odds `features @ slopes + offsets` of `classes`."""

    classes: np.ndarray
    slopes: np.ndarray  # (F, C) float32
    offsets: np.ndarray  # (C,) float32

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        logits = features @ self.slopes + self.offsets
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)


class System(VoxelClassifier):
    """The model is a `Linear`; `strength` is the penalty's C."""

    def __init__(self, params: Params):
        super().__init__(params)
        self.strength = params.strengths[0]

    def _choose(self, task: Task, cases: Sequence[Case], targets: int, generator: np.random.Generator) -> None:
        judged = scattered(cases, lambda case: self._features(task, case), generator, targets=targets, per_case=self.params.judged_voxels)
        scores = np.full((len(self.params.strengths), len(self.params.prior_exponents)), np.nan)[None]
        for learned, left_out in folds(self.samples, judged):
            lessons, exam = self.samples.part(learned), judged.part(left_out)
            if len(lessons.labels) and len(exam.labels):
                scores = np.concatenate([scores, self._scores(lessons, exam, len(task.labels))[None]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # nobody left out shows a label: every mean is of nothing
            mean = np.nan_to_num(np.nanmean(scores, axis=0))
        strength, exponent = np.unravel_index(mean.argmax(), mean.shape)
        self.strength, self.exponent = self.params.strengths[strength], self.params.prior_exponents[exponent]

    def _scores(self, lessons: Samples, exam: Samples, labels: int) -> np.ndarray:
        """Dice on the exam for every strength and exponent."""
        features, scores = exam.features.astype(np.float32), []
        for model in self._path(lessons, self.params.strengths):
            odds = np.log(np.maximum(model.probabilities(features), np.finfo(np.float32).tiny))
            rarity = np.log(np.maximum(self.priors[model.classes], np.finfo(float).tiny))
            scores.append([sampled_dice(exam.labels, model.classes[(odds + exponent * rarity).argmax(1)], labels)
                           for exponent in self.params.prior_exponents])
        return np.array(scores)

    def _learn(self, samples: Samples) -> Linear:
        return self._path(samples, [self.strength])[0]

    def _path(self, samples: Samples, strengths: Sequence[float]) -> list[Linear]:
        """A model for each strength, every one starting where the one before ended."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        features, classes = samples.features.astype(np.float64), np.unique(samples.labels)
        if len(classes) == 1:
            return [Linear(classes, np.zeros((features.shape[1], 1), np.float32), np.zeros(1, np.float32))] * len(strengths)
        mean = np.average(features, axis=0, weights=samples.weights)
        sd = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=samples.weights))
        sd = np.where(sd < SMALLEST_SD, 1.0, sd)
        regression, models = LogisticRegression(max_iter=self.params.iterations, warm_start=True), []
        for strength in strengths:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits of a penalised fit change no voxel
                regression.set_params(C=strength).fit((features - mean) / sd, samples.labels, samples.weights)
            slopes, offsets = regression.coef_, regression.intercept_
            if len(classes) == 2:  # scikit-learn gives the second class's only
                slopes, offsets = np.concatenate([0 * slopes, slopes]), np.concatenate([0 * offsets, offsets])
            slopes = slopes / sd
            models.append(Linear(classes, slopes.T.astype(np.float32), (offsets - slopes @ mean).astype(np.float32)))
        return models

    def _classes(self, model: Linear) -> np.ndarray:
        return model.classes

    def _balanced(self, features: np.ndarray, model: Linear) -> np.ndarray:
        return model.probabilities(features)

    def _save_model(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        save_file({"classes": self.model.classes, "slopes": np.ascontiguousarray(self.model.slopes), "offsets": self.model.offsets,
                   "strength": np.array([self.strength])}, folder / MODEL)

    def _load_model(self, folder: Path, state: dict) -> None:
        from safetensors.numpy import load_file

        stored = load_file(folder / MODEL)
        self.strength = float(stored.pop("strength")[0])
        self.model = Linear(**stored)
