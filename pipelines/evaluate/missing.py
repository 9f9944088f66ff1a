"""Missing modalities: a case predicted as if only some of what was acquired were there.

Nothing is encoded again: a case without a modality is the same case with its image and tokens left out (`Case.only`). What a system does with
a set of modalities that its support never had is its own; here it has to give probabilities all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from pipelines.cohort import Case
from pipelines.evaluate.metrics import dice, expected_calibration_error, reliability_bins
from pipelines.params import Evaluate
from pipelines.train.band import foreground_band

if TYPE_CHECKING:
    from pipelines.train.fitted import Fitted


def evaluate_subsets(fitted: Fitted, case: Case, labels: Sequence[str], settings: Evaluate) -> list[dict[str, object]]:
    """Each label's Dice and foreground-band ECE under each of the 2^M - 1 subsets of the case's modalities.

    Rows: label, modalities ("FLAIR+T1w", in the task's order), n_modalities, dice (NaN without truth), ece.
    """
    truth, brain, rows = case.label(), case.foreground(), []
    for subset in subsets_of([name for name in fitted.task.modalities if name in case.images]):
        probability = fitted.predict(case.only(subset))
        predicted = probability.argmax(axis=0)
        for value, label in enumerate(labels, start=1):
            true, found = truth == value, predicted == value
            band = foreground_band(true, found, case.spacing_mm, settings.band_mm) & (brain | true | found)
            bins = reliability_bins(probability[value][band], true[band], settings.ece_bins)
            rows.append({"label": label, "modalities": "+".join(subset), "n_modalities": len(subset), "dice": dice(true, found),
                         "ece": expected_calibration_error(bins)})
    return rows


def subsets_of(modalities: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every non-empty subset, large ones last, each in the order given."""
    for size in range(1, len(modalities) + 1):
        yield from combinations(modalities, size)
