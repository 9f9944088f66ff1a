"""Whether a study looks like the cases that a model was made with: the distance of its pooled embedding from theirs.

A case is, for each modality, the mean and the standard deviation of the frozen encoder's tokens inside the head. Its distance from the site's
cases is Mahalanobis' with the covariance shrunk as Ledoit and Wolf (2004) do, because there are fewer cases than numbers; over modalities it is
the root of the mean square. The site's own cases, each measured from the others, say what is usual.

Two p-values come of it. The rank among the site's own distances assumes nothing, but n cases allow none below 1 / (n + 1): 99 cases for 0.01. The
tail of a t distribution over their logarithms assumes that those are normal, and reaches as far as needed. The first is used where it can
decide, else the second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.errors import DataError
from pipelines.outputs import staged_file, write_json
from pipelines.sites.describe import by_patient, pooled_tokens
from pipelines.systems.protocol import Task

FACTS, VECTORS = "quality.json", "quality.safetensors"
#: Below so many cases nothing is said: each is measured from the others, and three do not make a covariance.
MIN_CASES = 4
#: A covariance without any shrinkage could not be inverted.
LEAST_SHRINKAGE = 1e-3


@dataclass(frozen=True)
class Typicality:
    """A study's distance among `cases` of the site: `usual` is their median distance; `smallest` the least rank p-value that so many allow."""

    distance: float
    usual: float
    cases: int
    p_rank: float
    p_tail: float

    @property
    def smallest(self) -> float:
        return 1 / (self.cases + 1)

    def p(self, level: float) -> float:
        """The p-value to hold against `level`: by rank where the cases are many enough to reach it, else by the tail."""
        return self.p_rank if self.smallest <= level else self.p_tail


@dataclass(frozen=True)
class Reference:
    """The site's cases, a row a patient: modality -> vectors `(cases, d)` float32, NaN where a patient lacks the modality."""

    site: str
    backbone: str  # fingerprint
    vectors: Mapping[str, np.ndarray]

    @property
    def cases(self) -> int:
        return len(next(iter(self.vectors.values()), ()))

    def check(self, case: Case, task: Task) -> Typicality | None:
        """How usual `case` (with tokens) is; None where too few of the site's cases share a modality with it."""
        if task.backbone.fingerprint != self.backbone:
            raise DataError(f"the site's cases were embedded by the backbone {self.backbone[:12]}, not {task.backbone.fingerprint[:12]}; have the "
                            "model made again")
        return self.compare({name: pooled_tokens(case, name).astype(np.float32) for name in case.tokens})

    def compare(self, new: Mapping[str, np.ndarray]) -> Typicality | None:
        """The same of vectors by modality. Modalities that the site's cases do not have are left out."""
        from scipy.stats import t

        new = {name: vector for name, vector in new.items() if name in self.vectors}
        everyone = np.arange(self.cases)
        distance = self._distance(new, everyone)
        own = [self._distance({name: self.vectors[name][one] for name in new}, everyone[everyone != one]) for one in everyone]
        known = np.array([value for value in own if value is not None and value > 0])
        if distance is None or len(known) < MIN_CASES:
            return None
        logs, n = np.log(known), len(known)
        spread = max(float(logs.std(ddof=1)), 1e-6) * np.sqrt(1 + 1 / n)
        tail = t.sf((np.log(max(distance, 1e-12)) - logs.mean()) / spread, n - 1)
        return Typicality(float(distance), float(np.median(known)), n, (1 + int((known >= distance).sum())) / (n + 1), float(tail))

    def _distance(self, new: Mapping[str, np.ndarray], chosen: np.ndarray) -> float | None:
        """From the cases `chosen`, over the modalities that `new` and at least two of them have."""
        squares = []
        for name, vector in new.items():
            rows = self.vectors[name][chosen]
            rows = rows[np.isfinite(rows).all(axis=1)]
            if len(rows) > 1 and np.isfinite(vector).all():
                squares.append(mahalanobis(rows.astype(np.float64), vector.astype(np.float64)))
        return float(np.sqrt(np.mean(squares))) if squares else None

    def save(self, folder: Path) -> None:
        """Write `quality.json` and `quality.safetensors` beside a model's weights, in its `fit/`, with which they travel. No case is named."""
        from safetensors.numpy import save_file

        with staged_file(Path(folder) / VECTORS) as path:
            save_file({name: np.ascontiguousarray(rows, np.float32) for name, rows in self.vectors.items()}, path)
        write_json(Path(folder) / FACTS, {"site": self.site, "backbone": self.backbone, "modalities": sorted(self.vectors), "cases": self.cases,
                                          "smallest_rank_p": 1 / (self.cases + 1)})

    @classmethod
    def load(cls, folder: Path) -> Reference | None:
        """What `save` wrote; None where the model has none."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if not (Path(folder) / FACTS).is_file():
            return None
        try:
            facts = json.loads((Path(folder) / FACTS).read_text())
            return cls(facts["site"], facts["backbone"], load_file(Path(folder) / VECTORS))
        except (OSError, ValueError, KeyError, SafetensorError):
            raise DataError(f"{Path(folder) / FACTS} or {VECTORS} beside it is damaged; have the model fetched or made again") from None


def reference_of(cases: Sequence[Case], task: Task, site: str | None = None) -> Reference:
    """What cases of a site look like to the task's backbone, a row a patient. Cases without tokens are encoded.

    `site`: by default the first case's. No label is looked at, so that any case of the site may be among them.
    """
    if not cases:
        raise DataError("there is no case to take statistics of; give the labelled cases of the site")
    patients = by_patient([with_tokens(case, task) for case in cases], pooled_tokens)
    vectors = {}
    for name in task.modalities:
        rows = [patients[subject].get(name) for subject in sorted(patients)]
        width = next((len(row) for row in rows if row is not None), 0)
        if width:
            vectors[name] = np.stack([np.full(width, np.nan) if row is None else row for row in rows]).astype(np.float32)
    return Reference(site or cases[0].site, task.backbone.fingerprint, vectors)


def with_tokens(case: Case, task: Task) -> Case:
    """The case with tokens of every image that the task knows: cached ones, the others encoded now."""
    known = case.only(task.modalities)
    fresh = {name: task.backbone.encode_image(known.image(name), known.spacing_mm) for name in known.images if name not in known.tokens}
    return replace(known, tokens={**known.tokens, **fresh})


def mahalanobis(rows: np.ndarray, vector: np.ndarray) -> float:
    """Squared distance of `vector` `(d,)` from the mean of `rows` `(n, d)` by their Ledoit-Wolf covariance, over d.

    By Woodbury's identity: the covariance is a multiple of one plus a matrix of rank n, and d may be in the thousands.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    count, width = rows.shape
    mean = rows.mean(axis=0)
    centred, offset = rows - mean, vector - mean
    variance = float((centred ** 2).sum()) / (count * width)
    if not variance > 0:
        return float(offset @ offset) / width
    shrinkage = float(np.clip(ledoit_wolf_shrinkage(centred, assume_centered=True), LEAST_SHRINKAGE, 1))
    ridge, root = shrinkage * variance, np.sqrt((1 - shrinkage) / count) * centred
    seen = root @ offset
    inner = np.linalg.solve(ridge * np.eye(count) + root @ root.T, seen)
    return float(offset @ offset - seen @ inner) / ridge / width
