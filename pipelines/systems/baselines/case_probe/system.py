"""Linear probe of whole cases: logistic regression on frozen features pooled over the case, every modality's beside the others'.

Pooled tokens are their mean and standard deviation over the head, level by level. A missing modality has the training cases' mean. The strength of
the penalty is chosen by cross-validation among the cases it learns from. Being linear, it adds up what the modalities say and relates nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.errors import DataError
from pipelines.systems.baselines.case_probe.params import Params
from pipelines.systems.protocol import Task

MODEL = "probe.safetensors"
SMALLEST_SD = 1e-3


class System:
    """`model`: mean and scale of the features, and `(classes, F + 1)` log-odds with the offset last."""

    answers = "case"

    def __init__(self, params: Params):
        self.params = params
        self.model: dict[str, np.ndarray] = {}
        self._vit = None

    @property
    def uses_tokens(self) -> bool:
        return self.params.features == "tokens"

    def fit(self, task: Task, support: Sequence[Case], seed: int, source: Sequence[Case] = ()) -> None:
        cases = [*support, *source]
        features = np.stack([self._features(task, case) for case in cases])
        truth = np.array([task.outcomes.index(case.outcome) for case in cases])
        with np.errstate(invalid="ignore"):
            known = np.isfinite(features)
            mean = np.where(known, features, 0).sum(0) / known.sum(0).clip(1)
            sd = np.sqrt(np.where(known, (features - mean) ** 2, 0).sum(0) / known.sum(0).clip(1))
        self.model = {"mean": mean, "sd": np.where(sd < SMALLEST_SD, 1.0, sd)}
        self.model["slopes"] = self._slopes(self._standardised(features), truth, len(task.outcomes), seed)

    def _slopes(self, features: np.ndarray, truth: np.ndarray, classes: int, seed: int) -> np.ndarray:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_score

        slopes = np.full((classes, features.shape[1] + 1), 0.0)
        present, counts = np.unique(truth, return_counts=True)
        slopes[np.setdiff1d(np.arange(classes), present), -1] = -np.inf  # a class that nobody showed
        if len(present) == 1:
            return slopes
        strength, folds = self.params.strengths[0], min(self.params.folds, int(counts.min()))
        if folds >= 2:
            judged = [cross_val_score(LogisticRegression(C=each, max_iter=2000), features, truth, scoring="neg_log_loss",
                                      cv=StratifiedKFold(folds, shuffle=True, random_state=seed)).mean() for each in self.params.strengths]
            strength = self.params.strengths[int(np.argmax(judged))]
        found = LogisticRegression(C=strength, max_iter=2000).fit(features, truth)
        own = np.concatenate([found.coef_, found.intercept_[:, None]], 1)
        slopes[present] = np.concatenate([0 * own, own]) if len(present) == 2 else own  # of two classes scikit-learn gives the second's only
        return slopes

    def predict(self, task: Task, case: Case) -> np.ndarray:
        slopes = self.model["slopes"]
        logits = slopes[:, :-1] @ self._standardised(self._features(task, case)) + slopes[:, -1]
        odds = np.exp(logits - logits.max())
        return (odds / odds.sum()).astype(np.float32)

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(value, np.float64) for name, value in self.model.items()}, folder / MODEL)

    def load(self, folder: Path) -> None:
        from safetensors.numpy import load_file

        self.model = load_file(folder / MODEL)

    def _standardised(self, features: np.ndarray) -> np.ndarray:
        return np.nan_to_num((features - self.model["mean"]) / self.model["sd"], nan=0.0)

    def _features(self, task: Task, case: Case) -> np.ndarray:
        """`(F,)` float64; NaN for what the case lacks."""
        known = [name for name in task.modalities if name in case.images and (not self.uses_tokens or name in case.tokens)]
        if not known:
            raise DataError(f"{case.id} has no cached tokens for any of its images; run the embed stage on this cohort")
        of = {name: self._pooled(task, case, name) if self.uses_tokens else self._class_token(case, name) for name in known}
        width = len(next(iter(of.values())))
        return np.concatenate([of.get(name, np.full(width, np.nan)) for name in task.modalities])

    def _pooled(self, task: Task, case: Case, name: str) -> np.ndarray:
        foreground, tokens, parts = case.foreground(), case.token_levels(name), []
        for level, (_, stride) in task.backbone.levels.items():
            values = np.moveaxis(np.asarray(tokens[level], np.float64), 1, -1)
            seen = foreground[:, stride // 2::stride, stride // 2::stride]
            mask = np.zeros(values.shape[:3], bool)
            mask[:, :seen.shape[1], :seen.shape[2]] = seen[:, :mask.shape[1], :mask.shape[2]]
            inside = values[mask] if mask.any() else values.reshape(-1, values.shape[-1])
            parts += [inside.mean(0), inside.std(0)]
        return np.concatenate(parts)

    def _class_token(self, case: Case, name: str) -> np.ndarray:
        import torch

        from pipelines.backbones.vit import load_vit
        from pipelines.backbones.vit.frames import slices_of

        self._vit = self._vit or load_vit(self.params.vit)
        with torch.inference_mode():
            return self._vit(self._vit.embed(slices_of(case, name, self.params.slices, self._vit.size)))[:, 0].mean(0).double().numpy()
