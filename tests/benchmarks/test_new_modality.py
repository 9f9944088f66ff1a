"""The comparison of arms on a new modality: its draws, its rows and its table, on the tiny cohort."""

from __future__ import annotations

import pandas as pd
import pytest
from tiny_cohort import tiny_case, tiny_task

from benchmarks.new_modality import COLUMNS, Draw, measure, prepare, report
from pipelines.errors import UsageError
from pipelines.params import load_params
from pipelines.train.split import Split

QUICK = {"steps": 5, "batch": 2, "views": 0, "projector_steps": 5, "hyper_steps": 3, "hyper_width": 8, "finetune_steps": 3, "regions": 20,
         "episodes": 1}


@pytest.fixture(scope="module")
def rows() -> tuple[pd.DataFrame, pd.DataFrame]:
    cases = [tiny_case(number) for number in range(4)]
    draw = Draw("T1w", "A", 1, 0, Split(tuple(cases[:1]), (), tuple(cases[2:]), "none"), (tiny_case(7, site="B", modalities=("FLAIR",)),))
    return measure(draw, cohort="tiny", task=tiny_task(("A", "B")), arms=("generated", "lora"), changes=QUICK, decode=True)


def test_each_arm_has_a_row_per_case_and_label(rows):
    aligned, dice = rows
    assert list(aligned) == [*COLUMNS, "accuracy"]
    assert list(dice) == [*COLUMNS, "dice"]
    assert len(aligned) == 2 * 2
    assert len(dice) == 2 * 2 * 2
    assert aligned.accuracy.between(0, 1).all()
    assert dice.dice.between(0, 1).all()
    assert set(dice.label) == {"core", "oedema"}


def test_the_table_names_every_arm_and_its_difference(rows, capsys):
    report(rows[0], "accuracy", load_params())
    printed = capsys.readouterr().out
    assert "tiny, T1w alone, regions, 1 shot(s)" in printed
    assert "generated minus it" in printed
    assert "lora" in printed
    assert f"{rows[0][rows[0].arm == 'lora'].accuracy.mean():.3f}" in printed


def test_without_a_decoder_only_alignment_is_measured():
    cases = [tiny_case(number) for number in range(2)]
    draw = Draw("T1w", "A", 1, 0, Split((cases[0],), (), (cases[1],), "none"), ())
    aligned, dice = measure(draw, cohort="tiny", task=tiny_task(), arms=("shared",), changes=QUICK, decode=False)
    assert (len(aligned), len(dice)) == (1, 0)


def test_a_cohort_that_is_not_laid_out_says_how(tmp_path):
    with pytest.raises(UsageError, match=r"params.yaml does not exist"):
        prepare("pgbm", tmp_path, ("ADC",), (1,), 1)
