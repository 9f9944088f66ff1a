"""A finished fit is found again exactly as long as nothing that its numbers depend on has changed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import pipelines.sweep.keys as keys_module
from pipelines.params import DEFAULT
from pipelines.sweep.keys import Keys, code_hash, imports
from pipelines.sweep.matrix import Cell, Fit
from pipelines.train.one import Job
from pipelines.train.split import Split

ROOT = Path(DEFAULT).parent
SEMI, FOREST = "pipelines.systems.semi", "pipelines.systems.baselines.random_forest"


@pytest.fixture
def fit() -> Fit:
    from tiny_cohort import tiny_case

    support, query = tiny_case(1), tiny_case(2)
    job = Job("semi-1", "semi", {"steps": 3}, 1, "A", 0, Split((support,), (), (query,), "none"), 8.0)
    return Fit(Cell("semi", "within", 1), job, overlays=False, subsets=False, keep=False)


def key(fit: Fit, **changed: str) -> str:
    images = dict.fromkeys(("sub-A01", "sub-A02"), "checksum")
    return Keys({"prompts": "p", "backbone": "b"} | changed, images).of(fit)


def test_a_key_follows_what_numbers_depend_on_and_nothing_else(fit):
    first = key(fit)
    assert first == key(fit)
    assert first == key(replace(fit, keep=True, cell=replace(fit.cell, arm="renamed"), job=replace(fit.job, experiment="renamed-1")))
    split = fit.job.split
    others = [replace(fit, job=replace(fit.job, **change)) for change in (
        {"params": {"steps": 4}}, {"system": "random-forest"}, {"seed": 1}, {"shots": 2}, {"site": "B"}, {"protocol": "transfer"},
        {"split": replace(split, query=split.support, support=split.query)}, {"split": replace(split, support=(), source=split.support)})]
    others += [replace(fit, subsets=True), replace(fit, overlays=True)]
    assert len({first, key(fit, prompts="q"), key(fit, backbone="c"), *map(key, others)}) == 3 + len(others)
    other_image = Keys({"prompts": "p", "backbone": "b"}, dict.fromkeys(("sub-A01", "sub-A02"), "other"))
    assert other_image.of(fit) != first


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the code that may be edited; `edit` appends to one of its files."""
    shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(keys_module, "ROOT", tmp_path)

    def forget():
        for function in (keys_module.code_hash, keys_module.imports, keys_module._tree):
            function.cache_clear()

    def edit(file: str, text: str) -> tuple[str, str]:
        with (tmp_path / file).open("a") as handle:
            handle.write(text)
        forget()
        return code_hash(SEMI), code_hash(FOREST)

    forget()
    yield edit
    forget()


def test_an_edited_system_is_made_anew_and_the_others_are_kept(copied):
    before = code_hash(SEMI), code_hash(FOREST)
    assert copied("pipelines/systems/semi/model.py", "\n# a comment changes nothing\n") == before
    after = copied("pipelines/systems/semi/model.py", "\nEDITED = 1\n")
    assert after[0] != before[0]
    assert after[1] == before[1]


@pytest.mark.parametrize("file", ["pipelines/train/calibrate.py", "pipelines/evaluate/metrics.py", "pipelines/evaluate/missing.py",
                                  "pipelines/cohort.py"])
def test_what_all_fits_run_makes_all_anew(copied, file):
    before = code_hash(SEMI), code_hash(FOREST)
    after = copied(file, "\nEDITED = 1\n")
    assert after[0] != before[0]
    assert after[1] != before[1]


@pytest.mark.parametrize("file", ["pipelines/report/page.py", "pipelines/systems/__init__.py", "pipelines/params.py", "pipelines/sweep/gather.py"])
def test_what_no_number_depends_on_makes_nothing_anew(copied, file):
    before = code_hash(SEMI), code_hash(FOREST)
    assert copied(file, "\nEDITED = 1\n") == before


def test_imports_inside_functions_count():
    assert "pipelines.systems.semi.batches" in imports("pipelines.systems.semi.system")
