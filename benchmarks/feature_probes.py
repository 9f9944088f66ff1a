"""The probes of the features benchmark: what a linear model and a random forest make of frozen features from a few labelled cases.

Both sample voxels as the project's random forest does (classes in equal numbers, inside the foreground) and correct their probabilities by
the support's class frequencies with the same exponent, so that only what they see of a voxel differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.feature_sets import Features, FeatureSet, read
from benchmarks.features_data import Cohort
from pipelines.cohort import Case
from pipelines.errors import DataError
from pipelines.evaluate.metrics import dice
from pipelines.params import Protocol
from pipelines.prompts.bank import PromptBank
from pipelines.systems.baselines.random_forest.params import Params
from pipelines.systems.baselines.random_forest.system import System
from pipelines.systems.protocol import Task
from pipelines.train.split import Split, draw

#: Inverse strength of the linear probe's ridge penalty, on standardised features. One value for every set, site and draw.
RIDGE_C = 0.01
MAX_ITERATIONS = 500
#: Voxels that are predicted together: their features stay in the processor's cache.
VOXELS_AT_ONCE = 8192
TREES_AT_ONCE = 5


class Forest(System):
    """The project's random forest on other features than its own."""

    name = "forest"

    def __init__(self, features: Mapping[str, Features]):
        super().__init__(Params())
        self.features = features

    def _features(self, task: Task, case: Case) -> Features:
        return self.features[case.id]

    def classes(self, rows: np.ndarray) -> np.ndarray:
        """The most probable class of each row of features `(N, F)` float32.

        The trees are asked a few at a time, and a voxel no more once those left could not change its class: the same classes as by asking all,
        in a third of the time, because most of a head is nothing like a lesion.
        """
        weights = self.priors[self.forest.classes_] ** self.params.prior_exponent
        trees = self.forest.estimators_
        votes, found, open_rows = np.zeros((len(rows), len(weights))), np.zeros(len(rows), np.intp), np.arange(len(rows))
        for asked in range(0, len(trees), TREES_AT_ONCE):
            for tree in trees[asked:asked + TREES_AT_ONCE]:
                votes += tree.tree_.value[:, 0][tree.tree_.apply(rows)]
            leading = (votes * weights).argmax(1)
            found[open_rows] = leading
            turn = _could_turn(votes, weights, leading, max(0, len(trees) - asked - TREES_AT_ONCE))
            if not turn.all():
                rows, votes, open_rows = rows[turn], votes[turn], open_rows[turn]
            if not len(rows):
                break
        return self.forest.classes_[found]


def _could_turn(votes: np.ndarray, weights: np.ndarray, leading: np.ndarray, left: int) -> np.ndarray:
    """Whether another class would lead if it got every vote of the trees that are left (each tree has one to give)."""
    index = np.arange(len(votes))
    rivals = (votes + left) * weights
    rivals[index, leading] = -np.inf
    return rivals.max(1, initial=-np.inf) >= votes[index, leading] * weights[leading]


class Linear(Forest):
    """Logistic regression on standardised features, in the forest's place: the same voxels, the same correction."""

    name = "linear"

    def fit(self, task: Task, support: Sequence[Case], seed: int) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        generator = np.random.default_rng(seed)
        truths = [case.label()[case.foreground()] for case in support]
        counts = np.bincount(np.concatenate(truths), minlength=1 + len(task.labels))
        rows, labels = [], []
        for case, truth in zip(support, truths, strict=True):
            chosen = np.sort(np.concatenate([self._sample(generator, truth, value, counts[value]) for value in range(len(counts))]))
            rows.append(self._features(task, case)[chosen])
            labels.append(truth[chosen])
        self.priors = counts / counts.sum()
        scaler, regression = StandardScaler(), LogisticRegression(C=RIDGE_C, max_iter=MAX_ITERATIONS)
        regression.fit(scaler.fit_transform(np.concatenate(rows)), np.concatenate(labels))
        self.known = regression.classes_
        slopes, offsets = regression.coef_, regression.intercept_
        if len(self.known) == 2:  # scikit-learn gives the second class's only
            slopes, offsets = np.concatenate([0 * slopes, slopes]), np.concatenate([0 * offsets, offsets])
        self.slopes = (slopes / scaler.scale_).T.astype(np.float32)
        self.offsets = offsets - (slopes / scaler.scale_) @ scaler.mean_ + self.params.prior_exponent * np.log(self.priors[self.known])

    def classes(self, rows: np.ndarray) -> np.ndarray:
        """The most probable class of each row of features."""
        return self.known[(rows @ self.slopes + self.offsets).argmax(1)]


PROBES = {probe.name: probe for probe in (Linear, Forest)}


@dataclass(frozen=True)
class Draw:
    """One support draw of a cohort: who teaches and who is asked."""

    site: str
    shots: int
    seed: int
    split: Split


def draws_of(cohort: Cohort, shots: Sequence[int], seeds: int) -> tuple[list[Draw], list[str]]:
    """The draws at every site, by the project's own protocol without calibration cases; and one sentence for each site that has too few cases."""
    protocol = Protocol(kind="within", seeds=list(range(seeds)), calibration_cases=0)
    draws, skipped = [], []
    for site in cohort.sites:
        count = len({case.subject for case in cohort.cases if case.site == site})
        for number in shots:
            try:
                draws += [Draw(site, number, seed, draw(cohort.cases, site, number, seed, protocol, split_by=cohort.params.cohort.split_by))
                          for seed in protocol.seeds]
            except DataError:
                skipped.append(f"{cohort.name}, site {site}: {number} shot(s) left out, its {count} labelled subject(s) leave nobody to evaluate")
    return draws, skipped


def fit(cohort: Cohort, feature_set: FeatureSet, draws: Sequence[Draw]) -> list[tuple[Draw, Forest]]:
    """Both probes of draws that share a site and a seed, so that their cases are read once."""
    support = {case.id: case for one in draws for case in one.split.support}
    features = {name: read(cohort.folder, feature_set, case, cohort.modalities) for name, case in support.items()}
    task = Task(tuple(label.name for label in cohort.params.cohort.labels), cohort.modalities, PromptBank({}, {}), backbone=None)
    fitted = []
    for one in draws:
        for kind in PROBES.values():
            probe = kind(features)
            probe.fit(task, one.split.support, one.seed)
            probe.features = {}  # of no use to a prediction, and large
            fitted.append((one, probe))
    return fitted


def evaluate(cohort: Cohort, feature_set: FeatureSet, case: Case, fitted: Sequence[tuple[Draw, Forest]]) -> list[dict[str, object]]:
    """Rows of features.csv: Dice of one case by every probe of which it is a query case, over the whole volume, mean over labels."""
    asked = [(one, probe) for one, probe in fitted if any(case.id == other.id for other in one.split.query)]
    features = read(cohort.folder, feature_set, case, cohort.modalities)
    predicted = np.zeros((len(asked), len(features)), np.uint8)
    for start in range(0, len(features), VOXELS_AT_ONCE):
        rows = np.arange(start, min(start + VOXELS_AT_ONCE, len(features)))
        values = features[rows]
        for index, (_, probe) in enumerate(asked):
            predicted[index, rows] = probe.classes(values)
    foreground, truth = case.foreground(), case.label()
    found = []
    for (one, probe), classes in zip(asked, predicted, strict=True):
        volume = np.zeros(truth.shape, np.uint8)
        volume[foreground] = classes
        found.append({"features": feature_set.name, "probe": probe.name, "cohort": cohort.name, "site": case.site, "shots": one.shots,
                      "seed": one.seed, "case": case.id, "dice": mean_dice(truth, volume, len(cohort.params.cohort.labels))})
    return found


def mean_dice(truth: np.ndarray, predicted: np.ndarray, labels: int) -> float:
    """Dice, averaged over the labels that the case shows; NaN where it shows none."""
    values = [dice(truth == value, predicted == value) for value in range(1, labels + 1)]
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def code_files() -> list[Path]:
    """The code that a row of results depends on besides features and draws."""
    import pipelines.systems.baselines.random_forest.system as recipe
    import pipelines.train.split as protocol

    return [Path(__file__), Path(recipe.__file__), Path(recipe.__file__).with_name("params.py"), Path(protocol.__file__)]
