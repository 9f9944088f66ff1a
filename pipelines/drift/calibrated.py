"""Whether the champion is still as sure as it should be, on whatever labels came since it was made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.evaluate.metrics import dice, expected_calibration_error, reliability_bins
from pipelines.params import Params
from pipelines.sites.cases import fitting
from pipelines.threads import one_thread
from pipelines.train.band import foreground_band
from pipelines.train.fitted import Fitted


def load_champion(champion: Path, params: Params) -> Fitted:
    """The model in a site's folder `champion/`."""
    from pipelines.backbones import load_backbone
    from pipelines.predict.bundle import backbone_of, load_model

    return load_model(champion, load_backbone(*backbone_of(champion, params.embed.backbone))).fitted


def measured(fitted: Fitted, cases: Sequence[Case], params: Params) -> list[dict[str, object]]:
    """ECE in the foreground band and Dice of each labelled case, means over the labels that it has; cases that the model knows no image of are left
    out."""
    rows = []
    with one_thread():
        for case in filter(None, (fitting(case, fitted) for case in cases)):
            probability, truth = fitted.predict(case), case.label()
            found, brain, values = probability.argmax(0), case.foreground(), []
            for value in range(1, len(probability)):
                true, predicted = truth == value, found == value
                band = foreground_band(true, predicted, case.spacing_mm, params.evaluate.band_mm) & (brain | true | predicted)
                sums = reliability_bins(probability[value][band], true[band], params.evaluate.ece_bins)
                values.append((expected_calibration_error(sums), dice(true, predicted)))
            ece, overlap = (_mean(column) for column in zip(*values, strict=True))
            rows.append({"case": case.id, "ece": ece, "dice": overlap})
    return rows


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None


def compare(fitted: Fitted, before: Sequence[Case], since: Sequence[Case], params: Params) -> dict[str, object]:
    """ECE on the champion's own query cases and on the labelled cases since, and whether it grew by more than the gate allows a new model."""
    old, new = measured(fitted, before, params), measured(fitted, since, params)
    means = [_mean([row["ece"] for row in rows if row["ece"] is not None]) for rows in (old, new)]
    worse = None not in means and len(new) > 1 and means[1] > means[0] + params.service.gate.ece_margin
    return {"ece_before": means[0], "ece_since": means[1], "cases_before": len(old), "cases_since": len(new), "worse": bool(worse), "cases": new}
