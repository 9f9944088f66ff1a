from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sites.gate import FEW, Row, Screened, decide
from pipelines.sites.params import Gate


def row(number: int, before: float | None, after: float, *, site: str = "b", known: bool = False, ece: float = 0.1) -> Row:
    return Row(site, f"sub-{site}{number}", f"{site}{number}", known, after, ece, before, None if before is None else 0.1)


def fresh(number: int, dice: float | None = 0.6, **changes) -> Screened:
    return replace(Screened(f"sub-b{number}", dice, True, 0.02, 0.0), **changes)


BETTER = [row(0, 0.5, 0.7), row(1, 0.6, 0.7)]
HOME = [row(0, 0.7, 0.72, known=True), row(1, 0.8, 0.81, known=True)]


def test_better_on_every_one_of_few_patients_is_promoted():
    verdict = decide("b", BETTER, [], Gate())
    assert verdict.decision == "promote"
    assert verdict.numbers["low"] == pytest.approx(0.1)
    assert "by luck alone it is above 0 once in 4" in verdict.reasons[0]


def test_one_patient_who_is_worse_keeps_the_champion():
    verdict = decide("b", [row(0, 0.5, 0.9), row(1, 0.6, 0.59)], [], Gate())
    assert verdict.decision == "keep"
    assert verdict.reasons[0].startswith("not surely better on the site")


def test_studies_of_one_patient_count_once():
    twice = [replace(BETTER[0], case="sub-b0_ses-02", dice=0.4), *BETTER]
    assert decide("b", twice, [], Gate()).numbers["patients"] == 2


def test_from_five_patients_on_the_interval_decides():
    rows = [row(number, 0.5, 0.5 + 0.02 * number) for number in range(FEW)]
    asked = []

    def interval(differences: np.ndarray, level: float) -> tuple[float, float]:
        asked.append((len(differences), level))
        return 0.01, 0.07

    assert decide("b", rows, [], Gate(), interval=interval).decision == "promote"
    assert decide("b", rows, [], Gate(margin=0.02), interval=interval).decision == "keep"
    assert asked == [(FEW, 0.9)] * 2


def test_too_few_cases_wait():
    assert decide("b", [], [], Gate(), lacking=["1 labelled patient(s) for query, 2 needed"]).decision == "wait"


def test_the_first_model_has_to_find_every_label():
    rows = [row(0, None, 0.6), row(1, None, 0.4)]
    assert decide("b", rows, [], Gate(), found={"core": True, "oedema": True}).decision == "promote"
    verdict = decide("b", rows, [], Gate(), found={"core": False, "oedema": True})
    assert (verdict.decision, verdict.reasons) == ("keep", ["the first model finds core in no query case"])


def test_worse_calibration_keeps():
    rows = [replace(one, ece=0.13) for one in BETTER]
    assert "worse calibrated" in decide("b", rows, [], Gate()).reasons[0]
    assert decide("b", rows, [], Gate(ece_margin=0.05)).decision == "promote"


def test_an_earlier_site_that_gets_worse_keeps():
    rows = [*BETTER, row(5, 0.8, 0.7, site="a", known=True), row(6, 0.8, 0.79, site="a", known=True)]
    assert "worse where it was good, a: Dice 0.800 -> 0.745" in decide("b", rows, [], Gate()).reasons[0]
    assert decide("b", rows, [], Gate(earlier_margin=0.06)).decision == "promote"


def test_a_mislabelled_batch_that_votes_for_its_own_model_is_stopped_by_cases_judged_before():
    """The new query labels are wrong as the new support labels are, so the spoiled model looks far better on them; even without a suspect."""
    spoiled = [row(0, 0.7, 0.55, known=True), row(1, 0.8, 0.6, known=True), *(row(number, 0.1, 0.9) for number in range(2, 9))]
    verdict = decide("b", spoiled, [], Gate(), interval=lambda differences, level: (0.3, 0.7))
    assert verdict.numbers["difference"] > 0.4
    assert verdict.decision == "keep"
    assert "cases judged before: Dice 0.750 -> 0.575" in verdict.reasons[0]


def test_a_new_case_on_which_a_good_champion_fails_is_suspicious():
    verdict = decide("b", HOME, [fresh(7, 0.05), fresh(8, 0.6)], Gate())
    assert verdict.decision == "keep"
    assert verdict.reasons[0].startswith("check the labels of 1 new case(s), whose images look usual: sub-b7 has Dice 0.05")
    assert "checked" in verdict.reasons[0]


@pytest.mark.parametrize("case", [fresh(7, 0.05, familiar=False), fresh(7, 0.05, checked=True), fresh(7, 0.4)])
def test_what_looks_different_or_was_checked_is_not_suspicious(case):
    assert decide("b", HOME, [case], Gate()).numbers["suspects"] == {}


def test_a_champion_that_is_bad_at_home_accuses_nobody():
    rows = [row(0, 0.1, 0.5, known=True), row(1, 0.2, 0.5, known=True)]
    assert decide("b", rows, [fresh(7, 0.0)], Gate()).decision == "promote"


@pytest.mark.parametrize(("after", "decision"), [(0.55, "promote"), (0.15, "keep")])
def test_at_a_new_site_labels_that_can_be_learned_acquit_themselves(after, decision):
    """A new scanner and a mislabelled batch look alike to a champion from elsewhere; a model learned of wrong labels does not find others of them."""
    elsewhere = [row(0, 0.7, 0.7, site="a", known=True), row(1, 0.8, 0.8, site="a", known=True)]
    verdict = decide("b", [*elsewhere, row(7, 0.02, after), row(8, 0.05, after)], [fresh(7, 0.02), fresh(8, 0.05)], Gate())
    assert verdict.decision == decision
    assert set(verdict.numbers["suspects"]) == (set() if decision == "promote" else {"sub-b7", "sub-b8"})


@pytest.mark.parametrize(("case", "why"), [(fresh(7, None, share_of_head=0.97), "fills 97% of the head"),
                                           (fresh(7, None, share_outside=0.8), "lies to 80% outside the head")])
def test_a_label_that_no_lesion_makes_is_suspicious_without_any_champion(case, why):
    verdict = decide("b", [row(0, None, 0.9)], [case], Gate(), found={"core": True})
    assert verdict.decision == "keep"
    assert why in verdict.reasons[0]


PAIRS = st.tuples(st.floats(0, 1), st.floats(0, 1))


@given(st.lists(PAIRS, min_size=1, max_size=4), st.lists(PAIRS, max_size=4))
def test_whatever_is_promoted_was_better_everywhere_it_had_to_be(own, earlier):
    rows = [row(number, *pair) for number, pair in enumerate(own)] + [row(number, *pair, site="a", known=True) for number, pair in enumerate(earlier)]
    verdict = decide("b", rows, [], Gate())
    if verdict.decision == "promote":
        assert all(after > before for before, after in own)
        assert not earlier or np.mean([before - after for before, after in earlier]) <= Gate().earlier_margin + 1e-9
    else:
        assert verdict.numbers["against"] > 0
