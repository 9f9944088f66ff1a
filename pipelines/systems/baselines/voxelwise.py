"""What the classifiers of single voxels share: balanced sampling, the correction to real class frequencies, and missing modalities.

Voxels are sampled in equal numbers per class, and the probabilities are corrected afterwards to the classes' real frequencies (Saerens et al.
2002), because a balanced classifier sees lesions everywhere. Ours: the correction is tempered, `p * prior ** exponent`.

A case that lacks a modality is predicted by a model of the modalities it has, learned from the same voxels when first asked for. The usual way,
zeros or means in place of what is missing, asks a model something that it was never taught.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.outputs import write_json
from pipelines.systems.baselines.random_forest.features import CACHE, PER_SCALE
from pipelines.systems.baselines.samples import Samples, balanced, load_samples, save_samples
from pipelines.systems.baselines.tokens import VoxelTokens, token_width
from pipelines.systems.filters import inside
from pipelines.systems.protocol import Task
from pipelines.systems.refinement import refined

SAMPLES, STATE = "samples.safetensors", "voxelwise.json"
#: Voxels that are predicted together; with some two hundred features each they fit a core's cache.
VOXELS_AT_ONCE = 2048


class Beside:
    """Feature tables of the same voxels side by side; rows as of an array."""

    def __init__(self, tables: Sequence):
        self.tables = tables

    def __len__(self) -> int:
        return len(self.tables[0])

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        return np.concatenate([np.asarray(table[rows], np.float32) for table in self.tables], axis=1)


class VoxelClassifier:
    """Subclasses say what a model is: `_learn` makes one of samples, `_balanced` gives its probabilities, `_classes` their order.

    `priors` are the class frequencies inside the foreground; 0 for a label that no case shows. `params` have `tokens`, `filters`, `sigmas`,
    `voxels_per_class`, `cache_mb` and `refinement`.
    """

    def __init__(self, params):
        self.params = params
        self.model = None
        self.priors = np.zeros(0)
        self.exponent = 0.0
        self.seed = 0
        self.trained: list[str] = []  # modalities that some case had
        self.samples: Samples | None = None
        self._partial: dict[tuple[str, ...], object] = {}  # models of some of the modalities

    @property
    def uses_tokens(self) -> bool:
        return self.params.tokens

    def fit(self, task: Task, support: Sequence[Case], seed: int, source: Sequence[Case] = ()) -> None:
        cases, generator = [*support, *source], np.random.default_rng(seed)
        self.seed, self._partial = seed, {}
        self.trained = [modality for modality in task.modalities if any(modality in case.images for case in cases)]
        self.samples, self.priors = balanced(cases, lambda case: self._features(task, case), generator, targets=len(support),
                                             classes=1 + len(task.labels), per_class=self.params.voxels_per_class)
        self._choose(task, cases, len(support), generator)
        self.model = self._learn(self.samples)

    def _choose(self, task: Task, cases: Sequence[Case], targets: int, generator: np.random.Generator) -> None:
        """Settings that a subclass takes from the cases at hand. The first `targets` are the support."""

    def _learn(self, samples: Samples):
        raise NotImplementedError

    def _balanced(self, features: np.ndarray, model) -> np.ndarray:
        """Probabilities `(N, C)` of the model's classes, as if all were equally frequent. features: `(N, F)` float32."""
        raise NotImplementedError

    def _classes(self, model) -> np.ndarray:
        """The label value of each of the model's classes."""
        raise NotImplementedError

    def _features(self, task: Task, case: Case):
        """Rows `(N, F)` of the foreground voxels, in the order of `np.nonzero`."""
        tables = []
        if self.params.filters:
            tables.append(CACHE.get(case, task.modalities, self.params.sigmas, self.params.cache_mb))
        if self.params.tokens:
            tables.append(VoxelTokens(case, task))
        return tables[0] if len(tables) == 1 else Beside(tables)

    def _columns(self, task: Task, modalities: Sequence[str]) -> np.ndarray:
        """Which columns of the features are about these modalities, `(F,)` boolean."""
        chosen = np.array([modality in modalities for modality in task.modalities])
        widths = [2 + PER_SCALE * len(self.params.sigmas)] if self.params.filters else []
        widths += [token_width(task) + 1] if self.params.tokens else []
        return np.concatenate([np.repeat(chosen, width) for width in widths])

    def predict(self, task: Task, case: Case) -> np.ndarray:
        known = [modality for modality in self.trained if modality in case.images]
        features = self._features(task, case)
        if len(known) == len(self.trained) or not known:
            model, columns = self.model, slice(None)
        else:
            columns = self._columns(task, known)
            model = self._model_of(tuple(known), columns)
        parts = []
        for start in range(0, len(features), VOXELS_AT_ONCE):
            values = np.asarray(features[start:start + VOXELS_AT_ONCE], np.float32, order="C")
            parts.append(self._balanced(np.ascontiguousarray(values[:, columns]), model))
        classes = self._classes(model)
        corrected = np.concatenate(parts) * self.priors[classes] ** self.exponent
        probabilities = np.zeros((len(corrected), 1 + len(task.labels)), np.float32)
        probabilities[:, classes] = corrected / corrected.sum(1, keepdims=True)
        return refined(inside(case.foreground(), probabilities), case, self.params.refinement)

    def _model_of(self, modalities: tuple[str, ...], columns: np.ndarray):
        """The model of some of the modalities: what would have been learned if nothing else had been acquired."""
        if modalities not in self._partial:
            samples = self.samples
            self._partial[modalities] = self._learn(Samples(samples.features[:, columns], samples.labels, samples.weights, samples.case,
                                                            samples.slices, samples.target))
        return self._partial[modalities]

    def save(self, folder: Path) -> None:
        save_samples(folder / SAMPLES, self.samples)
        write_json(folder / STATE, {"priors": self.priors.tolist(), "exponent": self.exponent, "seed": self.seed, "trained": self.trained})
        self._save_model(folder)

    def load(self, folder: Path) -> None:
        state = json.loads((folder / STATE).read_text())
        self.priors, self.exponent, self.seed, self.trained = np.array(state["priors"]), state["exponent"], state["seed"], state["trained"]
        self.samples, self._partial = load_samples(folder / SAMPLES), {}
        self._load_model(folder, state)

    def _save_model(self, folder: Path) -> None:
        raise NotImplementedError

    def _load_model(self, folder: Path, state: dict) -> None:
        raise NotImplementedError
