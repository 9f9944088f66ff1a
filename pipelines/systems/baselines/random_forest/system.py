"""Random forest on multi-scale filters, the strong classical few-shot baseline (the recipe of ilastik, Berg et al. 2019).

Voxels are sampled in equal numbers per class, and the probabilities are corrected afterwards to the classes' real frequencies in the
support cases (Saerens et al. 2002), because a balanced forest sees lesions everywhere. Ours: the correction is tempered,
`p * prior ** prior_exponent`. In full it takes the few shots' lesion load for the truth and misses most of a lesion (measured: mean Dice
0.42 against 0.62 at 0.25, four shots at two hospitals); what it leaves is the temperature's to calibrate.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.outputs import write_json
from pipelines.systems.baselines.random_forest.features import CACHE
from pipelines.systems.baselines.random_forest.params import Params
from pipelines.systems.filters import inside
from pipelines.systems.protocol import Task

FOREST, STATE = "forest.skops", "random_forest.json"
#: The only types a forest file may hold besides skops' own defaults.
TRUSTED = ("sklearn.tree._tree.Tree", "numpy.dtype")
#: Voxels that go through the trees together; with some two hundred features each they fit a core's cache.
VOXELS_AT_ONCE = 2048


class System:
    """`priors` are the support's class frequencies inside the foreground; 0 for a label that no support case shows."""

    uses_tokens = False

    def __init__(self, params: Params):
        self.params = params
        self.forest = None
        self.priors = np.zeros(0)

    def fit(self, task: Task, support: Sequence[Case], seed: int) -> None:
        from sklearn.ensemble import RandomForestClassifier

        generator = np.random.default_rng(seed)
        classes = 1 + len(task.labels)
        truths = [case.label()[case.foreground()] for case in support]
        counts = np.bincount(np.concatenate(truths), minlength=classes)
        features, labels = [], []
        for case, truth in zip(support, truths, strict=True):
            chosen = np.sort(np.concatenate([self._sample(generator, truth, value, counts[value]) for value in range(classes)]))
            features.append(self._features(task, case)[chosen].astype(np.float32))
            labels.append(truth[chosen])
        self.priors = counts / counts.sum()
        self.forest = RandomForestClassifier(self.params.trees, max_depth=self.params.max_depth, min_samples_leaf=self.params.min_samples_leaf,
                                             max_features="sqrt", random_state=seed, n_jobs=1)
        self.forest.fit(np.concatenate(features), np.concatenate(labels))

    def _features(self, task: Task, case: Case) -> np.ndarray:
        return CACHE.get(case, task.modalities, self.params.sigmas, self.params.cache_mb)

    def _sample(self, generator: np.random.Generator, truth: np.ndarray, value: int, total: int) -> np.ndarray:
        """This case's share of a class's sampled voxels, in proportion to how much of the class it has."""
        where = np.flatnonzero(truth == value)
        share = min(len(where), round(self.params.voxels_per_class * len(where) / total)) if total else 0
        return generator.choice(where, share, replace=False)

    def predict(self, task: Task, case: Case) -> np.ndarray:
        balanced = self._balanced(self._features(task, case))
        corrected = balanced * self.priors[self.forest.classes_] ** self.params.prior_exponent
        probabilities = np.zeros((len(balanced), 1 + len(task.labels)), np.float32)
        probabilities[:, self.forest.classes_] = corrected / corrected.sum(1, keepdims=True)
        return inside(case.foreground(), probabilities)

    def _balanced(self, features: np.ndarray) -> np.ndarray:
        """What the forest's own `predict_proba` gives, to the bit, a few voxels at a time: every tree reads their features from the cache."""
        total = np.zeros((len(features), len(self.forest.classes_)))
        for start in range(0, len(features), VOXELS_AT_ONCE):
            part = slice(start, start + VOXELS_AT_ONCE)
            values = features[part].astype(np.float32, order="C")
            for tree in self.forest.estimators_:
                total[part] += tree.tree_.predict(values)
        return total / len(self.forest.estimators_)

    def save(self, folder: Path) -> None:
        import skops.io

        skops.io.dump(self.forest, folder / FOREST)
        write_json(folder / STATE, {"priors": self.priors.tolist()})

    def load(self, folder: Path) -> None:
        import skops.io

        self.forest = skops.io.load(folder / FOREST, trusted=list(TRUSTED))
        self.priors = np.array(json.loads((folder / STATE).read_text())["priors"])
