"""Draws: disjoint, nested over shots, independent of order, and refused where a site is too small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.cohort import Case
from pipelines.errors import DataError
from pipelines.params import Protocol
from pipelines.train.split import POOL, TooFewCases, draw, sites_of


def case(subject: str, site: str, session: str = "", labelled: bool = True) -> Case:
    volume = np.zeros((1, 1, 1), np.uint8)
    return Case(subject, session, site, (1.0, 1.0, 1.0), 2, {"FLAIR": volume}, volume, volume if labelled else None)


def protocol(calibration: int = 1, query: int = 1) -> Protocol:
    return Protocol(seeds=[0], calibration_cases=calibration, min_query_cases=query)


def cohort(**counts: int) -> list[Case]:
    return [case(f"{site}{number}", site) for site, count in counts.items() for number in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(2, 9), st.integers(0, 4), st.integers(1, 2)), st.tuples(st.integers(1, 4), st.integers(0, 50)), st.integers(0, 3),
       st.randoms(), st.sampled_from(["subject", "session"]))
def test_groups_are_disjoint_nested_and_independent_of_order(counts, draws, calibration, order, split_by):
    (local, elsewhere, sessions), (shots, seed) = counts, draws
    cases = [replace(one, session=f"{number}") for one in cohort(A=local, B=elsewhere) for number in range(sessions)]
    try:
        split = draw(cases, "A", shots, seed, protocol(calibration), split_by=split_by)
    except DataError:
        assert local * sessions <= shots + 1
        return
    groups = [{one.subject if split_by == "subject" else one.id for one in group} for group in (split.support, split.calibration, split.query)]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert len(split.support) == shots
    assert split.query
    assert all(one.site == "A" for one in (*split.support, *split.query))
    assert {one.site for one in split.calibration} <= {"site": {"A"}, "other sites": {"B"}, "none": set()}[split.calibration_from]
    shuffled = list(cases)
    order.shuffle(shuffled)
    assert draw(shuffled, "A", shots, seed, protocol(calibration), split_by=split_by).ids() == split.ids()
    assert draw(cases, "A", 1, seed, protocol(calibration), split_by=split_by).ids()["support"] == split.ids()["support"][:1]


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(2, 9), st.integers(1, 6), st.integers(1, 2)), st.integers(0, 4), st.integers(0, 50), st.integers(0, 3),
       st.sampled_from(["subject", "session"]))
def test_transfer_is_within_with_a_source_that_shares_nobody(counts, shots, seed, calibration, split_by):
    local, elsewhere, sessions = counts
    cases = [replace(one, session=f"{number}") for one in cohort(A=local, B=elsewhere) for number in range(sessions)]
    cases += [case("A0", "B", "elsewhere")]  # a patient of A who was seen at B too
    drawn = {"split_by": split_by}
    try:
        split = draw(cases, "A", shots, seed, protocol(calibration), kind="transfer", **drawn)
    except DataError:
        assert local * sessions <= shots + 1
        return
    taught = {one.subject if split_by == "subject" else one.id for one in split.source}
    others = {one.subject if split_by == "subject" else one.id for one in (*split.support, *split.calibration, *split.query)}
    assert taught
    assert not taught & others
    assert {one.site for one in split.source} == {"B"}
    assert len({one.id for one in split.source}) == len(split.source)
    if shots:
        within = draw(cases, "A", shots, seed, protocol(calibration), kind="within", **drawn)
        lent = split.calibration_from == "none"  # the only cases elsewhere teach and do not calibrate
        assert within.ids() == split.ids() | {"source": []} | ({"calibration": within.ids()["calibration"]} if lent else {})
    else:
        assert {one.id for one in split.query} == {one.id for one in cases if one.site == "A"}
        assert split.calibration_from in ("other sites", "none")


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 8), st.integers(0, 50), st.integers(0, 2))
def test_pooled_draws_are_disjoint_and_nested_over_all_sites(first, second, shots, seed, calibration):
    cases = cohort(A=first, B=second)
    try:
        split = draw(cases, POOL, shots, seed, protocol(calibration), kind="pooled")
    except TooFewCases as error:
        assert first + second <= shots
        assert f"'all' has {first + second} labelled" in error.what
        return
    ids = [name for group in ("support", "calibration", "query") for name in split.ids()[group]]
    assert len(set(ids)) == len(ids) == first + second
    assert draw(cases, POOL, 1, seed, protocol(calibration), kind="pooled").support == split.support[:1]
    assert split.calibration_from in ("pool", "none")
    assert sites_of(cases, ["A"], "pooled") == [POOL]


def test_transfer_without_another_site_is_refused():
    with pytest.raises(DataError, match="learns from other sites than 'A'"):
        draw(cohort(A=5), "A", 1, 0, protocol(), kind="transfer")


def test_another_site_does_not_change_the_draw():
    alone, together = (draw(cohort(**counts), "A", 2, 5, protocol()) for counts in ({"A": 7}, {"A": 7, "B": 9}))
    assert alone.ids() == together.ids()


def test_seeds_differ():
    assert len({draw(cohort(A=8), "A", 1, seed, protocol()).support[0].id for seed in range(10)}) > 3


@pytest.mark.parametrize(("local", "elsewhere", "source", "query"), [
    (7, 5, "site", 2), (6, 5, "other sites", 2), (5, 5, "other sites", 1), (6, 0, "site", 1), (5, 0, "none", 1)])
def test_calibration_is_local_unless_too_little_would_be_left_to_evaluate(local, elsewhere, source, query):
    split = draw(cohort(A=local, B=elsewhere), "A", 4, 0, protocol())
    assert split.calibration_from == source
    assert len(split.query) == query


def test_two_studies_of_one_patient():
    cases = [case("P", "A", session) for session in ("1", "2")]
    split = draw(cases, "A", 1, 0, protocol(), split_by="session")
    assert (len(split.support), len(split.query), split.calibration_from) == (1, 1, "none")
    with pytest.raises(DataError, match="of another subject"):
        draw(cases, "A", 1, 0, protocol(), split_by="subject")


def test_too_small_a_site_is_refused_with_the_way_out():
    with pytest.raises(DataError) as error:
        draw([*cohort(Oslo=4), case("X", "Oslo", labelled=False)], "Oslo", 4, 0, protocol(), experiment="semi-4")
    for part in ("semi-4", "'Oslo'", "4 labelled case", "experiments.semi-4.shots", "add labelled cases"):
        assert part in str(error.value)


def test_sites_are_those_of_params_or_all():
    assert sites_of(cohort(B=1, A=1), "all") == ["A", "B"]
    assert sites_of(cohort(B=1, A=1), ["B"]) == ["B"]
    with pytest.raises(DataError, match=r"names 'B'.*its sites are A"):
        sites_of(cohort(A=2), ["B"])
