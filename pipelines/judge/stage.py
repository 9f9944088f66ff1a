"""Champion and challenger predict the same query cases, and the gate decides: `verdict.json`.

Both models are as they would serve: each with its own text, its own modalities and its own temperature.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.drift.calibrated import load_champion, measured
from pipelines.errors import DataError, UsageError
from pipelines.judge.picture import draw_pair
from pipelines.judge.screen import screen
from pipelines.outputs import write_json
from pipelines.params import Params
from pipelines.report.resampling import intervals
from pipelines.sites.cases import load_cases
from pipelines.sites.folders import Folders
from pipelines.sites.gate import Row, decide
from pipelines.sites.lesson import digest, lacking, named, read_card, read_lesson
from pipelines.train.fitted import RECORD, Fitted


@dataclass
class Judged:
    """A model that is asked for many cases: each is predicted once, and what was measured is kept."""

    fitted: Fitted
    params: Params
    found: dict[str, np.ndarray] = field(default_factory=dict)  # case id -> predicted label values (S, H, W)
    values: dict[str, dict] = field(default_factory=dict)

    def measure(self, case: Case) -> dict:
        """`dice` and `ece` of a case, means over the labels it has; None where it has none. A model that knows no modality of it finds nothing."""
        if case.id not in self.values:
            blind = {"dice": 0.0 if case.label().any() else None, "ece": None}
            self.values[case.id] = next(iter(measured(self._watched(case.id), [case], self.params)), blind)
            self.found.setdefault(case.id, np.zeros(case.foreground().shape, np.uint8))
        return self.values[case.id]

    def _watched(self, name: str) -> Fitted:
        """The model, keeping what it predicts."""
        found = self.found

        class Watched(Fitted):
            def predict(self, case: Case) -> np.ndarray:
                probability = super().predict(case)
                found[name] = probability.argmax(0).astype(np.uint8)
                return probability

        return Watched(self.fitted.system, self.fitted.task, self.fitted.record)


def judge(folders: Folders, params: Params) -> dict[str, object]:
    """Write `verdict.json` and `verdict.png`, and return the verdict."""
    lesson = read_lesson(folders.lesson)
    if lesson is None or not folders.rival.is_file() or not (folders.challenger / "fit" / RECORD).is_file():
        raise UsageError(f"{folders.folder} has no lesson.json, rival.json or challenger; flows.adapt_site makes them before this stage")
    rival = json.loads(folders.rival.read_text())
    challenger = Judged(load_champion(folders.challenger, params), params)
    champion = Judged(load_champion(folders.champion, params), params) if rival["version"] is not None else None
    fingerprint = challenger.fitted.task.backbone.fingerprint
    if champion and champion.fitted.record["backbone"] != fingerprint:
        raise DataError(f"the champion of {folders.folder.name} was made with another backbone than params embed.backbone; give the site "
                        "that one again, or take the alias 'champion' away in the registry to begin anew")
    cases = {lesson["site"]: load_cases(folders.folder, fingerprint)}
    cases |= {other["site"]: load_cases(Path(other["folder"]), fingerprint) for other in lesson["earlier"]}
    card = read_card(folders.champion) if champion else {}
    rows = list(_rows(lesson, cases, champion, challenger, card))
    screened = screen(lesson, cases, champion, card, params.service.sites[lesson["site"]].checked)
    verdict = decide(lesson["site"], rows, screened, params.service.gate, lacking=lacking(lesson, params.service.gate),
                     found=_labels_found(challenger, cases[lesson["site"]]), interval=_interval(params))
    _draw(folders.picture, lesson, cases[lesson["site"]], champion, challenger)
    content = {"site": lesson["site"], "decision": verdict.decision, "reasons": verdict.reasons, "numbers": verdict.numbers, "champion": rival,
               "challenger": digest(folders.challenger), "cases": [asdict(row) for row in rows], "screened": [asdict(case) for case in screened]}
    write_json(folders.verdict, content)
    return content


def _rows(lesson: Mapping, cases: Mapping[str, Mapping[str, Case]], champion: Judged | None, challenger: Judged, card: Mapping):
    """A row for every query case that has any of the labels."""
    accepted = card.get("labels", {}) if card.get("site") == lesson["site"] else {}
    own = [(lesson["site"], name, case, accepted.get(name) == case["label"]) for name, case in _query(lesson["cases"])]
    earlier = [(other["site"], name, case, True) for other in lesson["earlier"] for name, case in _query(other["cases"])]
    for site, name, entry, known in own + earlier:
        case = cases[site].get(name)
        if case is None:
            raise DataError(f"{name}, a query case of site {site!r}, is no longer among the resampled cases; run flows.adapt_site for it again")
        after = challenger.measure(case)
        before = champion.measure(case) if champion else {"dice": None, "ece": None}
        if after["dice"] is not None:
            yield Row(site, name, entry["subject"], known, after["dice"], after["ece"], before["dice"], before["ece"])


def _query(cases: Mapping[str, Mapping]) -> list[tuple[str, Mapping]]:
    return [(name, cases[name]) for name in named(cases, "query")]


def _labels_found(challenger: Judged, own: Mapping[str, Case]) -> dict[str, bool]:
    """Whether any voxel of a label was found in any query case of the site."""
    labels = challenger.fitted.task.labels
    seen = [(predicted, own[name].label()) for name, predicted in challenger.found.items() if name in own]
    return {label: any(((predicted == value) & (truth == value)).any() for predicted, truth in seen) for value, label in enumerate(labels, start=1)}


def _interval(params: Params):
    def interval(differences: np.ndarray, level: float) -> tuple[float, float]:
        settings = params.evaluate.model_copy(update={"confidence": level})
        (low, high), = intervals(lambda means: means, [np.asarray(differences, float)[:, None]], settings)
        return float(low), float(high)

    return interval


def _draw(path: Path, lesson: Mapping, own: Mapping[str, Case], champion: Judged | None, challenger: Judged) -> None:
    """The site's query case of median Dice, as both models outline it."""
    names: Sequence[str] = sorted((name for name in named(lesson["cases"], "query") if challenger.values.get(name, {}).get("dice") is not None),
                                  key=lambda name: (challenger.values[name]["dice"], name))
    if names:
        case = own[names[len(names) // 2]]
        models = {"champion": champion, "challenger": challenger} if champion else {"challenger": challenger}
        draw_pair(path, case, {name: (model.found[case.id], model.values[case.id]["dice"]) for name, model in models.items()},
                  challenger.fitted.task.labels)
