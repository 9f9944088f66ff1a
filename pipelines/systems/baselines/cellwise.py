"""What the adapters of a vision-language model share: they classify frozen features of single positions, with similarities to text beside them.

They learn from balanced voxels like `voxelwise`, choose their settings by leaving out one support case at a time (blocks of slices of a single
one), and predict on the backbone's finest grid, from which their logits are interpolated to voxels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.outputs import write_json
from pipelines.systems.baselines.samples import Samples, balanced, folds, sampled_dice, scattered
from pipelines.systems.baselines.tokens import Cells, TokenReader, bilinear, modalities_with_tokens, token_width
from pipelines.systems.filters import inside
from pipelines.systems.protocol import Task
from pipelines.systems.reproducible import reproducible

WEIGHTS, STATE = "weights.safetensors", "cellwise.json"
#: Cells that are predicted together; bounds memory.
CELLS_AT_ONCE = 4096
#: A healthy voxel is background too; the class of what lies outside the head is of no use inside it.
BACKGROUND = "healthy"


class PositionFeatures:
    """What the adapters see of a position, `(N, M, W)`: for each modality `key` features, similarities to the class prompts, and a flag.

    `key` is "tokens", all levels of the backbone, or "aligned", its unit vectors in text space. All zeros for a missing modality.
    """

    def __init__(self, case: Case, task: Task, key: str):
        self.case, self.task, self.key = case, task, key
        self.known = modalities_with_tokens(case, task)
        self.stride = min(stride for _, stride in task.backbone.levels.values())
        self._aligned = {modality: task.backbone.align(case.token_levels(modality)) for modality in self.known}
        self._tokens = {modality: TokenReader(case, modality, task) for modality in self.known} if key == "tokens" else {}

    def at(self, where: np.ndarray) -> np.ndarray:
        """Features `(N, M, W)` float32 of positions `(3, N)` in pixels."""
        task = self.task
        features = np.zeros((where.shape[1], len(task.modalities), key_width(task, self.key) + len(task.labels) + 2), np.float32)
        for modality in self.known:
            grid = self._aligned[modality]
            aligned = bilinear(where, grid.shape, self.stride) @ grid.reshape(-1, task.backbone.dim)
            aligned /= np.maximum(np.linalg.norm(aligned, axis=1, keepdims=True), 1e-6)
            key = self._tokens[modality].at(where) if self.key == "tokens" else aligned
            similarity = aligned @ prompts_of(task, modality, self.case.site).T
            features[:, task.modalities.index(modality)] = np.concatenate([key, similarity, np.ones((len(key), 1), np.float32)], axis=1)
        return features

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The foreground voxels of these numbers, `(N, M * W)`."""
        features = self.at(np.stack(np.nonzero(self.case.foreground()))[:, rows])
        return features.reshape(len(features), -1)


def key_width(task: Task, key: str) -> int:
    """Key features of a position in one modality."""
    return token_width(task) if key == "tokens" else task.backbone.dim


def prompts_of(task: Task, modality: str, site: str) -> np.ndarray:
    """Unit vectors of background and labels, `(1 + K, dim)`, in the order of the labels' values."""
    return np.stack([task.prompts.embedding(modality, name, site) for name in (BACKGROUND, *task.labels)])


def some_dropped(features, rate: float):
    """A batch `(N, M, W)` with modalities left out at random; a position keeps at least one."""
    import torch

    present = features[..., -1]
    kept = present * (torch.rand(present.shape) >= rate)
    return torch.cat([features[..., :-1], torch.where(kept.any(1, keepdim=True), kept, present)[..., None]], dim=-1)


class CellClassifier:
    """Subclasses make a network with `_learned` and give its logits with `_logits` under each of `_settings()`, one of which is chosen."""

    uses_tokens = True
    key = "aligned"

    def __init__(self, params):
        self.params = params
        self.network = None
        self.priors = np.zeros(0)
        self.setting: dict[str, float] = {}
        self.exponent = 0.0
        self.shape: dict[str, int] = {}
        self.trained: list[str] = []  # modalities that some case had

    def fit(self, task: Task, support: Sequence[Case], seed: int, source: Sequence[Case] = ()) -> None:
        cases, params, generator = [*support, *source], self.params, np.random.default_rng(seed)
        self.shape = {"modalities": len(task.modalities), "classes": 1 + len(task.labels), "key_width": key_width(task, self.key)}
        features: dict[int, PositionFeatures] = {}

        def of(case: Case) -> PositionFeatures:
            if len(features) > 1 or id(case) not in features:
                features.clear()
                features[id(case)] = PositionFeatures(case, task, self.key)
            return features[id(case)]

        known = [set(modalities_with_tokens(case, task)) for case in cases]
        self.trained = [modality for modality in task.modalities if any(modality in present for present in known)]
        lessons, self.priors = balanced(cases, of, generator, targets=len(support), classes=1 + len(task.labels), per_class=params.voxels_per_class)
        judged = scattered(cases, of, generator, targets=len(support), per_case=params.judged_voxels)
        with reproducible(seed):
            self._choose(task, lessons, judged)
            self.network = self._learned(task, lessons)

    def _choose(self, task: Task, lessons: Samples, judged: Samples) -> None:
        """The setting and the exponent of the prior that do best on what is left out; the first ones where nothing can be left out."""
        choices = [(setting, exponent) for setting in self._settings() for exponent in self.params.prior_exponents]
        scores = []
        for learned, left_out in folds(lessons, judged):
            part, exam = lessons.part(learned), judged.part(left_out)
            if len(part.labels) and exam.labels.any():
                network = self._learned(task, part)
                scores.append([self._score(network, exam, setting) for setting in self._settings()])
        mean = np.mean(scores, axis=0).ravel() if scores else np.zeros(len(choices))
        self.setting, self.exponent = choices[int(mean.argmax())]

    def _score(self, network, exam: Samples, setting: dict[str, float]) -> list[float]:
        """Dice on the exam for every exponent."""
        logits = self._in_parts(network, exam.features.astype(np.float32).reshape(len(exam.labels), self.shape["modalities"], -1), setting)
        return [sampled_dice(exam.labels, (logits + exponent * self._rarity()).argmax(1), self.shape["classes"] - 1)
                for exponent in self.params.prior_exponents]

    def _rarity(self) -> np.ndarray:
        """Logarithm of the class frequencies; of a class that nobody showed, one that no evidence makes up for."""
        return np.log(np.maximum(self.priors, 1e-30)).astype(np.float32)

    def _in_parts(self, network, features: np.ndarray, setting: dict[str, float]) -> np.ndarray:
        """Logits `(N, 1 + K)` of features `(N, M, W)`."""
        import torch

        with torch.inference_mode():
            return np.concatenate([self._logits(network, torch.from_numpy(features[start:start + CELLS_AT_ONCE]), setting).numpy()
                                   for start in range(0, len(features), CELLS_AT_ONCE)])

    def _tensors(self, samples: Samples):
        """Features `(N, M, W)`, labels and weights `(N,)`."""
        import torch

        features = torch.from_numpy(samples.features).float().reshape(len(samples.labels), self.shape["modalities"], -1)
        return features, torch.from_numpy(samples.labels), torch.from_numpy(samples.weights).float()

    def _settings(self) -> list[dict[str, float]]:
        return [{}]

    def _learned(self, task: Task, samples: Samples):
        """A network taught with these samples. Called with torch seeded."""
        raise NotImplementedError

    def _logits(self, network, features, setting: dict[str, float]):
        """`(N, 1 + K)` of a tensor `(N, M, W)`, balanced over the classes."""
        raise NotImplementedError

    def _empty(self, shape: dict[str, int], weights: dict):
        """A network whose weights are about to be read."""
        raise NotImplementedError

    def predict(self, task: Task, case: Case) -> np.ndarray:
        known = [modality for modality in self.trained if modality in case.images and modality in case.tokens]
        case = case.only(known) if known else case
        cells = Cells.of(case, task)
        features, centres = PositionFeatures(case, task, self.key), cells.centres()
        parts = [self._in_parts(self.network, features.at(centres[:, start:start + CELLS_AT_ONCE]), self.setting)
                 for start in range(0, centres.shape[1], CELLS_AT_ONCE)]
        logits = cells.to_voxels(case, np.concatenate(parts)) + self.exponent * self._rarity()
        logits[:, self.priors == 0] = -np.inf
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return inside(case.foreground(), odds / odds.sum(1, keepdims=True))

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in self.network.state_dict().items()}, folder / WEIGHTS)
        write_json(folder / STATE, {"shape": self.shape, "trained": self.trained, "priors": self.priors.tolist(), "setting": self.setting,
                                    "exponent": self.exponent})

    def load(self, folder: Path) -> None:
        from safetensors.torch import load_file

        state, weights = json.loads((folder / STATE).read_text()), load_file(folder / WEIGHTS)
        self.shape, self.trained, self.priors = state["shape"], state["trained"], np.array(state["priors"])
        self.setting, self.exponent = state["setting"], state["exponent"]
        self.network = self._empty(self.shape, weights)
        self.network.load_state_dict(weights)
