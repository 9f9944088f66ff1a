from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.sites.params import Roles
from pipelines.sites.roles import ROLES, Given, extend, read_roles, write_roles

NAMES = [f"S{number:03d}" for number in range(60)]


def counts(table) -> dict[str, int]:
    return dict(Counter(entry.role for entry in table))


def test_five_patients_are_two_one_two():
    assert counts(extend([], NAMES[:5], Roles())) == {"support": 2, "calibration": 1, "query": 2}


def test_support_ends_where_params_say():
    table = extend([], NAMES, Roles(most_support=3))
    assert counts(table)["support"] == 3
    assert counts(table)["query"] == pytest.approx(2 * counts(table)["calibration"], abs=2)


def test_the_order_of_a_batch_does_not_matter():
    assert extend([], NAMES[:9], Roles()) == extend([], NAMES[:9][::-1], Roles())


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(st.sets(st.sampled_from(NAMES), max_size=12), max_size=8), shares=st.tuples(*[st.integers(1, 9)] * 3))
def test_roles_never_change_and_shares_hold(batches, shares):
    support, calibration, query = (share / sum(shares) for share in shares)
    wanted = Roles(support=support, calibration=calibration, query=query, most_support=1000)
    table: list[Given] = []
    for batch in batches:
        longer = extend(table, batch, wanted)
        assert longer[:len(table)] == table, "a role that was given stays, and so does its place"
        table = longer
        assert len({entry.subject for entry in table}) == len(table)
        for role in ROLES:
            assert abs(counts(table).get(role, 0) - getattr(wanted, role) * len(table)) <= 1.5
    assert {entry.subject for entry in table} == set().union(*batches)


def test_the_table_on_disk_only_grows(tmp_path):
    path = tmp_path / "roles.tsv"
    first = extend([], NAMES[:5], Roles())
    write_roles(path, first)
    assert read_roles(path) == first
    write_roles(path, extend(first, NAMES[:8], Roles()))
    assert [entry.batch for entry in read_roles(path)] == [1] * 5 + [2] * 3
    moved = [Given(entry.subject, "support", entry.batch) for entry in read_roles(path)]
    with pytest.raises(DataError, match="never changes"):
        write_roles(path, moved)


def test_a_damaged_table_is_refused(tmp_path):
    path = tmp_path / "roles.tsv"
    for text in ("", "subject\trole\tbatch\nS1\tteacher\t1\n", "subject\trole\tbatch\nS1\tquery\t1\nS1\tsupport\t1\n"):
        path.write_text(text)
        with pytest.raises(DataError, match="restore it from a backup"):
            read_roles(path)
