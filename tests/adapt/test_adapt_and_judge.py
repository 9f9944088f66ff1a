"""Adaptation and judgement on workspaces of two sites: what is promoted, what is kept, and why."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from tiny_sites import Sites, case, wrong

from pipelines.errors import DataError, UsageError
from pipelines.judge.stage import judge
from pipelines.sites.lesson import make_lesson, read_card


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Site a with its first champion, which serves site b too. Do not change it, copy it."""
    sites = Sites(tmp_path_factory.mktemp("sites"))
    sites.receive("a", [case("a", number) for number in range(5)])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(sites.root)
        verdict = sites.learn("a")
    sites.promote("a", "b")
    return sites, verdict


@pytest.fixture
def sites(first, tmp_path, monkeypatch):
    source, _ = first
    copy = object.__new__(Sites)
    copy.root = tmp_path / "project"
    shutil.copytree(source.root, copy.root)
    monkeypatch.chdir(copy.root)
    return copy


@pytest.fixture
def both(sites):
    """Site b adapted too, and served by its own champion."""
    sites.receive("b", [case("b", number) for number in range(5)])
    assert sites.learn("b", "a")["decision"] == "promote"
    sites.promote("b")
    return sites


def test_the_first_champion_is_promoted_when_it_finds_every_label(first):
    sites, verdict = first
    assert verdict["decision"] == "promote"
    assert "no champion yet" in verdict["reasons"][0]
    assert {row["known"] for row in verdict["cases"]} == {False}
    assert sites.folders("a").picture.read_bytes()[:4] == b"\x89PNG"


def test_another_scanner_is_adapted_to_and_the_earlier_site_is_judged_too(sites):
    sites.receive("b", [case("b", number) for number in range(5)])
    verdict = sites.learn("b", "a")
    assert verdict["decision"] == "promote", verdict["reasons"]
    assert verdict["numbers"]["champion"] < 0.5 < verdict["numbers"]["challenger"]
    assert verdict["numbers"]["earlier"]["a"]["cases"] == 2
    fit = json.loads((sites.folders("b").challenger / "fit" / "fit.json").read_text())
    assert [name[4] for name in fit["split"]["source"]] == ["a", "a"]
    assert {name[4] for name in fit["split"]["support"] + fit["split"]["query"]} == {"b"}
    prompts = json.loads((sites.folders("b").challenger / "text" / "prompts.json").read_text())
    assert set(prompts["FLAIR"]["core"]) == {"a", "b"}, "text for every site that the model learned from"


def test_the_same_lesson_again_is_no_better(sites):
    verdict = sites.learn("a")
    assert verdict["decision"] == "keep"
    assert verdict["numbers"]["difference"] == 0
    assert {row["known"] for row in verdict["cases"]} == {True}


def test_a_mislabelled_batch_is_not_promoted_and_its_cases_are_named(both):
    good, bad = [case("b", number) for number in range(5)], [wrong(case("b", number)) for number in range(5, 10)]
    both.receive("b", good + bad)
    verdict = both.learn("b", "a")
    assert verdict["decision"] == "keep"
    assert verdict["reasons"][0].startswith("check the labels of 5 new case(s)")
    assert set(verdict["numbers"]["suspects"]) == {f"sub-b{number}" for number in range(5, 10)}
    both.promote("b")  # even if it were: what its cases are is remembered only with an accepted model
    assert "sub-b7" in read_card(both.folders("b").champion)["labels"]


def test_a_good_batch_after_the_first_accuses_nobody(both):
    both.receive("b", [case("b", number) for number in range(10)])
    verdict = both.learn("b", "a")
    assert verdict["numbers"]["suspects"] == {}
    assert "b, cases judged before" in verdict["numbers"]["earlier"]
    assert sum(row["known"] for row in verdict["cases"] if row["site"] == "b") == 2


def test_an_inverted_first_batch_is_stopped_without_any_champion(sites):
    shutil.rmtree(sites.folders("b").champion)
    inverted = [replace(one, dseg=((one.dseg == 0) & (one.brain > 0)).astype("uint8")) for one in (case("b", number) for number in range(5))]
    sites.receive("b", inverted)
    verdict = sites.learn("b")
    assert verdict["decision"] == "keep"
    assert "of the head" in verdict["reasons"][0]


def test_an_earlier_site_lends_only_what_its_gate_accepted(both):
    both.receive("b", [case("b", number) for number in range(5)] + [wrong(case("b", number)) for number in range(5, 10)])
    lesson = make_lesson("a", both.folders("a"), {"b": "sites/b"}, 8, both.root)
    assert set(lesson["earlier"][0]["cases"]) < {f"sub-b{number}" for number in range(5)}


def test_an_unlabelled_study_changes_no_lesson(sites):
    before = make_lesson("a", sites.folders("a"), {}, 8, sites.root)
    unlabelled = case("a", 9)
    sites.receive("a", [case("a", number) for number in range(5)])
    assert make_lesson("a", sites.folders("a"), {}, 8, sites.root) == before
    manifest = sites.folders("a").resampled / "manifest.tsv"
    row = next(line for line in manifest.read_text().splitlines() if "\timage\tFLAIR" in line)
    manifest.write_text(manifest.read_text() + row.replace("a0", unlabelled.subject) + "\n")
    assert make_lesson("a", sites.folders("a"), {}, 8, sites.root) == before


def test_what_is_missing_is_said(sites):
    folders = sites.folders("b")
    folders.lesson.unlink(missing_ok=True)
    with pytest.raises(UsageError, match=r"has no lesson\.json"):
        judge(folders, sites.params)
    sites.receive("b", [case("b", number) for number in range(2)])
    with pytest.raises(DataError, match="0 labelled patient\\(s\\) for calibration, 1 needed; 1 labelled patient\\(s\\) for query, 2 needed"):
        sites.learn("b", "a")
