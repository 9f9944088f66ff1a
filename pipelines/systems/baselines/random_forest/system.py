"""Random forest on multi-scale filters, the strong classical few-shot baseline (the recipe of ilastik, Berg et al. 2019).

The correction to the classes' real frequencies is tempered (`voxelwise`): in full it takes the few shots' lesion load for the truth and misses
most of a lesion (measured: mean Dice 0.42 against 0.62 at 0.25, four shots at two hospitals); what it leaves is the temperature's to calibrate.

With `tokens` it sees the backbone's frozen tokens too: what a forest makes of everything that SEMI is given.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.systems.baselines.random_forest.params import Params
from pipelines.systems.baselines.samples import Samples, share
from pipelines.systems.baselines.voxelwise import VoxelClassifier

FOREST = "forest.skops"
#: The only types a forest file may hold besides skops' own defaults.
TRUSTED = ("sklearn.tree._tree.Tree", "numpy.dtype")


class System(VoxelClassifier):
    """The model is a `RandomForestClassifier`, also called `forest`."""

    def __init__(self, params: Params):
        super().__init__(params)
        self.exponent = params.prior_exponent

    @property
    def forest(self):
        return self.model

    @forest.setter
    def forest(self, model) -> None:
        self.model = model

    def _learn(self, samples: Samples):
        from sklearn.ensemble import RandomForestClassifier

        forest = RandomForestClassifier(self.params.trees, max_depth=self.params.max_depth, min_samples_leaf=self.params.min_samples_leaf,
                                        max_features="sqrt", random_state=self.seed, n_jobs=1)
        return forest.fit(samples.features.astype(np.float32), samples.labels, None if samples.target.all() else samples.weights)

    def _classes(self, model) -> np.ndarray:
        return model.classes_

    def _balanced(self, features: np.ndarray, model) -> np.ndarray:
        """What the forest's own `predict_proba` gives, to the bit."""
        return sum(tree.tree_.predict(features) for tree in model.estimators_) / len(model.estimators_)

    def _sample(self, generator: np.random.Generator, truth: np.ndarray, value: int, total: int) -> np.ndarray:
        """This case's share of a class's sampled voxels, in proportion to how much of the class it has."""
        return share(generator, truth, value, total, self.params.voxels_per_class)

    def _save_model(self, folder: Path) -> None:
        import skops.io

        skops.io.dump(self.model, folder / FOREST)

    def _load_model(self, folder: Path, state: dict) -> None:
        import skops.io

        self.model = skops.io.load(folder / FOREST, trusted=list(TRUSTED))
