"""The whole report of evaluated experiments: its tables, its numbers in words, its one page."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from synthetic_reports import small_params, write_cohort

from pipelines.errors import DataError, UsageError
from pipelines.report.collect import COLUMNS, collect
from pipelines.report.stage import report
from pipelines.report.table import print_results
from pipelines.report.words import interval, number

EXPERIMENTS = {f"{system}-{shots}": {"system": system, "shots": shots} for system, shots in (("unet", 4), ("semi", 1), ("semi", 4))}
CAVEAT = "distances are nominal <mm>"


class Page(HTMLParser):
    """What a browser would fetch, what it would say of images, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.fetched, self.alts, self.ids, self.tags, self.parts = [], [], [], set(), []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.parts)).replace(" ,", ",")

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.add(tag)
        self.fetched += [values[name] for name in ("src", "href", "srcset", "data") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "img":
            self.alts.append(values.get("alt", ""))

    def handle_data(self, data):
        self.parts.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two cohorts reported: the project's, and one laid out beside it with a single label column and one experiment missing."""
    folder = tmp_path_factory.mktemp("made")
    first = small_params(folder, experiments=EXPERIMENTS)
    second = small_params(folder / "cohorts" / "second", "second", experiments={"semi-1": EXPERIMENTS["semi-1"]}, **{"cohort.caveat": CAVEAT})
    for file, sites in ((first, ("alpha", "beta")), (second, ("solo",))):
        write_cohort(folder / "reports" / "cohorts", file, sites=sites, subjects=4)
    shutil.copytree(folder / "reports" / "cohorts" / "phantom" / "semi-1", folder / "reports" / "cohorts" / "phantom" / "renamed-since")
    shutil.copytree(folder / "reports" / "cohorts" / "second", folder / "reports" / "cohorts" / "gone")
    report(folder / "reports" / "cohorts", folder / "reports", first)
    out = folder / "reports"
    return SimpleNamespace(params=first, out=out, metrics=json.loads((out / "metrics.json").read_text()),
                           page=Page((out / "index.html").read_text()), results=pd.read_csv(out / "results.csv"))


def test_results_have_the_promised_columns_and_no_stale_rows(made):
    assert list(made.results.columns[:len(COLUMNS)]) == COLUMNS
    assert set(made.results.cohort) == {"phantom", "second"}
    assert set(made.results.experiment) == set(EXPERIMENTS)
    cases = pd.read_csv(made.out / "cohorts" / "phantom" / "semi-4" / "cases.csv")
    rows = made.results[(made.results.cohort == "phantom") & (made.results.experiment == "semi-4")]
    np.testing.assert_array_equal(rows.dice, cases.dice)


def test_means_are_means_over_patients(made):
    rows = made.results[(made.results.cohort == "phantom") & (made.results.experiment == "semi-4") & (made.results.label == "oedema")]
    values = made.metrics["phantom"]["experiments"]["semi-4"]["labels"]["oedema"]["dice"]
    assert values["mean"] == pytest.approx(rows.groupby("case").dice.mean().mean())
    assert values["low"] <= values["mean"] <= values["high"]
    assert values["n"] == rows.case.nunique()


def test_the_better_system_is_found_better(made):
    comparison = made.metrics["phantom"]["comparisons"]["semi-4 vs unet-4"]["oedema"]["dice"]
    assert comparison["difference"] > 0
    assert comparison["ratio"] > 1
    assert comparison["p"] <= comparison["p_holm"] <= 1
    assert list(made.metrics["phantom"]["comparisons"]) == ["semi-4 vs unet-4"]


def test_plots_are_tables_of_the_same_numbers(made):
    curve = pd.read_csv(made.out / "plots" / "learning_curve.csv")
    assert list(curve.columns[:9]) == ["shots", "cohort", "system", "label", "dice", "low", "high", "arm", "protocol"]
    row = curve[(curve.cohort == "phantom") & (curve.system == "semi") & (curve.shots == 4) & (curve.label == "oedema")].iloc[0]
    assert row.dice == pytest.approx(made.metrics["phantom"]["experiments"]["semi-4"]["labels"]["oedema"]["dice"]["mean"])
    bins = pd.read_csv(made.out / "plots" / "reliability.csv")
    assert {"cohort", "system", "shots", "confidence", "accuracy", "count"} <= set(bins.columns)
    chosen = bins[(bins.cohort == "phantom") & (bins.system == "unet") & (bins.label == "oedema")]
    source = pd.read_csv(made.out / "cohorts" / "phantom" / "unet-4" / "reliability.csv")
    source = source[(source.label == "oedema") & (source.region == "band")]
    assert chosen["count"].sum() == source["count"].sum()
    assert (chosen.accuracy * chosen["count"]).sum() == pytest.approx((source.accuracy * source["count"]).sum())


def test_the_page_is_self_contained_and_can_be_heard(made):
    page = made.page
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert all(target.startswith(("data:image/png;base64,", "#")) for target in page.fetched)
    assert {target[1:] for target in page.fetched if target.startswith("#")} <= set(page.ids)
    assert page.alts and all(page.alts)
    assert len(set(page.ids)) == len(page.ids)
    assert "url(" not in (made.out / "index.html").read_text()


def test_the_page_says_what_metrics_say(made):
    for name in ("phantom", "second"):
        for experiment in made.metrics[name]["experiments"].values():
            for values in experiment["labels"].values():
                for metric, digits in (("dice", 2), ("nsd_2mm", 2), ("ece", 3)):
                    assert number(values[metric]["mean"], digits) in made.page.text
                    assert interval(values[metric], digits).replace("\u00a0", " ") in made.page.text
    comparison = made.metrics["phantom"]["comparisons"]["semi-4 vs unet-4"]["tumour-core"]["dice"]["over_sites"]
    assert f"{comparison['p_holm']:.3f}" in made.page.text
    assert "SEMI was adapted to each of 2 sites (alpha, beta) from 4 labelled cases" in made.page.text
    assert "SEMI was adapted to one site from 1 labelled case" in made.page.text


def test_the_caveat_is_shown_and_escaped(made):
    assert "Distances are nominal <mm>." in made.page.text
    assert "nominal &lt;mm&gt;" in (made.out / "index.html").read_text()


def test_figures_exist_for_the_readme_and_every_experiment(made):
    names = {path.name for path in (made.out / "figures").iterdir()}
    assert {"overview.png", "phantom_comparison.png", "phantom_learning_curve.png", "phantom_reliability.png", "phantom_sites.png",
            "phantom_semi-4_alpha.png", "phantom_unet-4_overlay.png", "second_semi-1_overlay.png"} <= names


def test_again_makes_the_same_bytes(made, tmp_path):
    report(made.out / "cohorts", tmp_path / "again", made.params)
    for path in (path for path in (tmp_path / "again").rglob("*") if path.is_file()):
        assert path.read_bytes() == (made.out / path.relative_to(tmp_path / "again")).read_bytes(), path.name


def test_an_experiment_not_evaluated_yet_is_named(made, tmp_path):
    shutil.copytree(made.out / "cohorts" / "phantom", tmp_path / "cohorts" / "phantom")
    shutil.rmtree(tmp_path / "cohorts" / "phantom" / "unet-4")
    cohort = collect(tmp_path / "cohorts", made.params)[0]
    assert cohort.waiting == ["unet-4"]
    assert list(cohort.summaries) == ["semi-1", "semi-4"]


def test_a_cohort_laid_out_by_another_version_does_not_stop_the_others(made, tmp_path, capsys):
    shutil.copytree(made.params.parent, tmp_path / "copy")
    old = tmp_path / "copy" / "cohorts" / "second" / "params.yaml"
    old.write_text(old.read_text() + "\nretired: 1\n")
    cohorts = collect(tmp_path / "copy" / "reports" / "cohorts", tmp_path / "copy" / made.params.name)
    assert [cohort.name for cohort in cohorts] == ["phantom"]
    assert "make reproduce COHORT=second" in capsys.readouterr().err


def test_nothing_to_report(made, tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        collect(tmp_path / "nowhere", made.params)
    (tmp_path / "cohorts" / "phantom").mkdir(parents=True)
    with pytest.raises(DataError, match="no evaluated experiment"):
        collect(tmp_path / "cohorts", made.params)


def test_the_terminal_table_fits_and_agrees(made):
    console = Console(record=True, width=80)
    print_results(made.out, console)
    text = console.export_text()
    values = made.metrics["phantom"]["experiments"]["semi-4"]["labels"]["oedema"]
    assert f"{number(values['dice']['mean'])} {interval(values['dice'])}" in text
    assert "…" not in text
    assert f"Caveat: {CAVEAT}." in text
    assert str((made.out / "index.html").resolve()) in text
    with pytest.raises(DataError, match=r"pipelines\.report"):
        print_results(made.out / "figures", console)
