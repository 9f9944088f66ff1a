"""All subsets of modalities, with real systems that saw them all in training and with ones that did not."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_cohort import LABELS, dice, tiny_case, tiny_task

from pipelines.evaluate.missing import evaluate_subsets, subsets_of
from pipelines.params import Evaluate
from pipelines.systems import create, params_model
from pipelines.train.fitted import Fitted

SMALL = {"semi": {"steps": 8, "views": 0}, "random-forest": {"trees": 20}, "unet": {"steps": 15, "channels": [8, 16]}}
SETTINGS = Evaluate(band_mm=6.0, bootstrap=100, headline="semi")


def test_subsets_are_all_of_them_large_ones_last():
    assert list(subsets_of("abc")) == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    assert len(list(subsets_of("abcd"))) == 2**4 - 1


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("trained_on", [("FLAIR", "T1w"), ("FLAIR",)])
def test_every_system_predicts_from_every_subset(name, trained_on):
    task, query = tiny_task(), tiny_case(9)
    system = create(name, params_model(name)(**SMALL[name]))
    system.fit(task, [tiny_case(number, modalities=trained_on) for number in range(2)], 0)
    fitted = Fitted(system, task, {"temperature": 1.3})
    rows = evaluate_subsets(fitted, query, LABELS, SETTINGS)
    assert [(row["modalities"], row["n_modalities"], row["label"]) for row in rows] == [
        (subset, count, label) for subset, count in (("FLAIR", 1), ("T1w", 1), ("FLAIR+T1w", 2)) for label in LABELS]
    assert all(0 <= row["dice"] <= 1 and 0 <= row["ece"] <= 1 for row in rows)
    whole = fitted.predict(query)
    assert [row["dice"] for row in rows[-2:]] == pytest.approx([dice(whole, query, value) for value in (1, 2)])
    without_tokens = evaluate_subsets(fitted, query.only(["FLAIR"]), LABELS, SETTINGS)
    assert [row["modalities"] for row in without_tokens] == ["FLAIR", "FLAIR"]
    assert without_tokens == rows[:2]


def test_what_was_acquired_matters():
    """The oedema cannot be told from the core on FLAIR alone as well as on both."""
    task = tiny_task()
    system = create("random-forest", params_model("random-forest")(trees=20))
    system.fit(task, [tiny_case(number) for number in range(2)], 0)
    fitted = Fitted(system, task, {"temperature": 1.0})
    rows = [row for number in (8, 9) for row in evaluate_subsets(fitted, tiny_case(number), LABELS, SETTINGS)]
    mean = {subset: np.mean([row["dice"] for row in rows if row["modalities"] == subset]) for subset in ("FLAIR", "T1w", "FLAIR+T1w")}
    assert mean["FLAIR+T1w"] > max(mean["FLAIR"], mean["T1w"])
