"""The verdict on a prediction: what speaks against it, in sentences, and whether it may leave.

A finding either withholds the result or is only stated: that nothing was found, that a modality that the model knows was not acquired, that the
site's cases are too few for a check. A check that could not be made is stated too, because silence would look like a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from pipelines.cohort import Case
from pipelines.predict.bundle import Model
from pipelines.sites.params import Quality
from pipelines.sites.typical import MIN_CASES, Typicality

ANYWAY = "--even-if-withheld"


@dataclass(frozen=True)
class Finding:
    """One check that has something to say."""

    check: str  # modalities | typicality | volume | series
    withholds: bool
    text: str


@dataclass(frozen=True)
class Verdict:
    """All findings, and the numbers behind them. `released`: a person asked for the result although it is withheld."""

    findings: tuple[Finding, ...]
    typicality: Typicality | None = None
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    released: bool = False

    @property
    def withheld(self) -> bool:
        return any(finding.withholds for finding in self.findings)

    @property
    def delivered(self) -> bool:
        """Whether there is a segmentation."""
        return self.released or not self.withheld

    def reasons(self) -> str:
        """What withholds the result, in a line."""
        return "; ".join(finding.text for finding in self.findings if finding.withholds)

    def record(self) -> dict:
        """As `qc.json` keeps it."""
        typicality = None if self.typicality is None else {**asdict(self.typicality), "smallest_p_rank": self.typicality.smallest}
        volumes_ml = {name: round(value, 4) for name, value in self.volumes_ml.items()}
        return {"withheld": self.withheld, "released": self.released, "findings": [asdict(finding) for finding in self.findings],
                "typicality": typicality, "volumes_ml": volumes_ml, "what_now": self._what_now()}

    def _what_now(self) -> str:
        if not self.withheld:
            return "the segmentation was written; look at it before it is used"
        if self.released:
            return f"the segmentation was written because {ANYWAY} asked for it, although the checks say otherwise; do not use it unseen"
        return f"no segmentation was written; see to the findings, or predict again with {ANYWAY} and judge for yourself"


def check_inputs(case: Case, model: Model, quality: Quality) -> list[Finding]:
    """Before anything is predicted: are the modalities there?"""
    known = model.fitted.task.modalities
    usable = [name for name in known if name in case.images]
    findings = []
    if missing := [name for name in quality.required if name not in case.images]:
        findings.append(Finding("modalities", True, f"{' and '.join(missing)} missing, which params service.quality.required asks for"))
    if not usable:
        findings.append(Finding("modalities", True, f"none of the modalities that the model knows ({', '.join(known)}) is there"))
    elif absent := [name for name in known if name not in case.images and name not in quality.required]:
        findings.append(Finding("modalities", False, f"predicted without {', '.join(absent)}"))
    if ignored := sorted(set(case.images) - set(known)):
        findings.append(Finding("modalities", False, f"{', '.join(ignored)} not used, which the model does not know"))
    return findings


def check_typical(case: Case, model: Model, quality: Quality) -> tuple[list[Finding], Typicality | None]:
    """Does the study (with tokens) look like the site's cases?"""
    unchecked = "not checked whether the study looks like the site's cases: "
    if model.reference is None:
        return [Finding("typicality", False, f"{unchecked}the model came without their statistics")], None
    found = model.reference.check(case, model.fitted.task)
    if found is None:
        few = f"fewer than {MIN_CASES} of its {model.reference.cases} share a modality with it"
        return [Finding("typicality", False, unchecked + few)], None
    p = found.p(quality.outlier_p)
    how = (f"rank among the site's {found.cases} cases" if found.smallest <= quality.outlier_p else
           f"t tail of their log distances; by rank, {found.cases} cases allow none below {found.smallest:.2g}")
    said = f"distance {found.distance:.2f} where {found.usual:.2f} is usual, p = {p:.2g} ({how})"
    if p <= quality.outlier_p:
        return [Finding("typicality", True, f"the study does not look like the site's cases: {said}")], found
    return [Finding("typicality", False, f"the study looks like the site's cases: {said}")], found


def check_volume(volumes_ml: Mapping[str, float], quality: Quality) -> list[Finding]:
    """Is there as much as a lesion can be? Nothing at all is a result, not a fault."""
    total = sum(volumes_ml.values())
    if not total:
        return [Finding("volume", False, "nothing was found: no voxel is segmented")]
    for beyond, limit, word in ((total < quality.smallest_ml, "smallest_ml", "less"), (total > quality.largest_ml, "largest_ml", "more")):
        if beyond:
            bound = getattr(quality, limit)
            return [Finding("volume", True, f"{total:.3g} ml segmented in all, {word} than {bound:g} ml (params service.quality.{limit})")]
    return []


def check_series(refused: Sequence[str]) -> list[Finding]:
    """What of the study could not be used is stated."""
    return [Finding("series", False, text) for text in refused]


def volumes(labels: Sequence[str], segmented: np.ndarray, voxel_ml: float) -> dict[str, float]:
    """Millilitres of each label in a volume of label values."""
    counts = np.bincount(segmented.ravel(), minlength=len(labels) + 1)[1:]
    return {label: float(count * voxel_ml) for label, count in zip(labels, counts, strict=True)}
