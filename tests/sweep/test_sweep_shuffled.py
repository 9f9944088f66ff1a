"""The control with another patient's modality: it is another's, it fits, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_cohort import tiny_case

from pipelines.errors import DataError
from pipelines.sweep.shuffled import shuffled
from pipelines.train.split import Split


def test_one_modality_is_another_patients_and_the_rest_is_the_cases_own():
    cases = [tiny_case(number) for number in range(3)]
    lone = tiny_case(3, modalities=("T1w",))
    before = Split((cases[0], lone), (cases[1],), (cases[2],), "site")
    after = shuffled(before, "FLAIR")
    assert after.ids() == before.ids() and after.support[1] is lone
    for old, new, donor in zip(cases, (after.support[0], *after.calibration, *after.query), (cases[1], cases[2], cases[0]), strict=True):
        head = old.foreground()
        np.testing.assert_allclose(new.image("FLAIR"), donor.image("FLAIR") * head, atol=1e-5)
        assert np.abs(new.image("FLAIR") - old.image("FLAIR")).max() > 0.5
        np.testing.assert_allclose(new.token_levels("FLAIR")["fine"], donor.token_levels("FLAIR")["fine"], atol=1e-3)
        np.testing.assert_array_equal(new.image("T1w"), old.image("T1w"))
        np.testing.assert_array_equal(new.token_levels("T1w")["fine"], old.token_levels("T1w")["fine"])
        np.testing.assert_array_equal(new.label(), old.label())


def test_a_case_is_not_its_own_donor_nor_is_another_session_of_its_subject():
    first, again, other = tiny_case(0, session="1"), tiny_case(0, session="2"), tiny_case(1, session="1")
    after = shuffled(Split((first, again), (), (other,), "none"), "FLAIR")
    for case in after.support:
        np.testing.assert_allclose(case.image("FLAIR"), other.image("FLAIR") * case.foreground(), atol=1e-5)


def test_one_subject_has_nobody_to_swap_with():
    with pytest.raises(DataError, match="FLAIR cannot be shuffled"):
        shuffled(Split((tiny_case(0),), (), (tiny_case(1, modalities=("T1w",)),), "none"), "FLAIR")


def test_a_worker_asks_torch_for_one_thread_in_all_it_does(monkeypatch):
    """A forked process cannot use the threads that its parent's torch has started: the first larger operation would wait for ever."""
    import torch

    from pipelines.sweep import work

    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(work, "run_order", lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        work.run_orders([None], None, None, "tiny")
    finally:
        torch.set_num_threads(before)
    assert seen == [1]
