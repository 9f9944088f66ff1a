"""A cohort with a sweep: the report speaks of the sweep, finds the effects that were put in, and says the unwelcome ones."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from synthetic_reports import small_params, write_cohort
from synthetic_sweep import ARMS, CONDITIONS, Arm, write_sweep

from pipelines.params import load_params
from pipelines.report import extras
from pipelines.report.collect import MOST_DRAWN, collect
from pipelines.report.evidence import main as evidence
from pipelines.report.metrics import reported
from pipelines.report.page import briefly
from pipelines.report.stage import report
from pipelines.report.words import summary

ONE_LABEL = [{"name": "tumour", "segments": ["1"], "text": "tumour"}]
PLAIN = {"semi-4": {"system": "semi", "shots": 4}, "unet-4": {"system": "unet", "shots": 4}}
HARMFUL = Arm("semi-frozen-less", "control", 0.2, "semi", "SEMI")  # does better than the headline
STRONG = Arm("hemis", "baseline", 0.2, title="HeMIS", protocols=("pooled",))  # so does this, pooled


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)).replace("&nbsp;", " "))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One cohort with a sweep of eight arms beside a single experiment of its own."""
    folder = tmp_path_factory.mktemp("swept")
    file = small_params(folder, experiments=PLAIN, **{"cohort.labels": ONE_LABEL})
    single = small_params(folder / "single", experiments={"semi-4": PLAIN["semi-4"]})  # the synthetic cases have two labels
    write_cohort(folder / "reports" / "cohorts", single, subjects=3, sites=("alpha",))
    write_sweep(folder / "reports" / "cohorts", load_params(file), (*ARMS, HARMFUL, STRONG))
    report(folder / "reports" / "cohorts", folder / "reports", file)
    out = folder / "reports"
    return SimpleNamespace(params=file, out=out, metrics=json.loads((out / "metrics.json").read_text())["phantom"],
                           html=(out / "index.html").read_text(), text=words((out / "index.html").read_text()))


def test_the_sweep_is_reported_and_the_single_experiments_are_recorded(made):
    rows = pd.read_csv(made.out / "results.csv", dtype={"case": str})
    assert {"semi-4", "sweep/semi-4", "sweep/semi-0-transfer"} <= set(rows.experiment)
    assert {"arm", "protocol", "case_site"} <= set(rows.columns)
    assert made.metrics["experiments"]["semi-4"]["reported"] is False
    assert all(name.startswith("sweep/") for name in reported(made.metrics))
    for name in rows[rows.experiment.str.startswith("sweep/")].experiment.unique():
        assert (made.out / "cohorts" / "phantom" / name / "summary.json").is_file()  # where the recorder looks
    assert {entry["protocol"] for entry in briefly(made.metrics)} == {"within"}
    assert {entry["role"] for entry in briefly(made.metrics)} == {"headline", "baseline"}


def test_every_baseline_is_compared_at_every_condition_on_the_same_draws(made):
    for protocol, shots in CONDITIONS:
        expected = {arm.name for arm in (*ARMS, STRONG) if arm.role == "baseline" and protocol in arm.protocols}
        found = {made.metrics["experiments"][title.split(" vs ")[1]]["arm"] for title in made.metrics["comparisons"]
                 if made.metrics["experiments"][title.split(" vs ")[0]]["protocol"] == protocol
                 and made.metrics["experiments"][title.split(" vs ")[0]]["shots"] == shots}
        assert found == expected
    against = made.metrics["comparisons"]["sweep/semi-4 vs sweep/random-forest-4"]["tumour"]["dice"]["over_sites"]
    assert against["difference"] == pytest.approx(0.12, abs=0.02)
    assert against["low"] < against["difference"] < against["high"]
    assert against["p"] <= against["p_holm"] < 0.05


def test_the_best_baseline_is_the_best_there_is(made):
    chosen = {(row["protocol"], row["shots"], row["metric"]): row["arm"] for row in made.metrics["best_baselines"]}
    assert chosen["within", 4, "dice"] == "random-forest"
    assert chosen["transfer", 0, "dice"] == "unet-source"
    assert chosen["pooled", 8, "dice"] == "hemis"
    assert chosen["pooled", 8, "ece"] == "hemis"


def test_means_over_sites_and_pooled_cases_by_their_own_site(made):
    rows = pd.read_csv(made.out / "cohorts" / "phantom" / "sweep" / "semi-8-pooled" / "cases.csv")
    entry = made.metrics["experiments"]["sweep/semi-8-pooled"]
    assert set(entry["sites"]) == {"alpha", "beta"}
    by_case = rows.groupby(["case_site", "case"]).dice.mean()
    assert entry["over_sites"]["tumour"]["dice"]["mean"] == pytest.approx(by_case.groupby(level=0).mean().mean())


def test_ablations_and_controls_are_a_family_of_their_own(made):
    assert {title.split(" vs ")[1] for title in made.metrics["ablations"] if title.startswith("sweep/semi-4 ")} == {
        "sweep/semi-one-hot-4", "sweep/semi-shuffled-4", "sweep/semi-frozen-less-4"}
    points = {point["kind"]: point["text"] for point in summary(made.metrics) if "hanges" in point["text"] or "made wrong" in point["text"]}
    assert "SEMI: shuffled" in points["good"]
    assert "SEMI: one hot" in points["open"]
    assert "SEMI: frozen less" in points["bad"]


def test_the_unwelcome_is_said_first_hand(made):
    assert "SEMI has the lower Dice, beyond chance, than HeMIS (pooled, 8 labelled cases" in made.text
    assert "A promise to miss at most 10 % of the lesion was refused each time".replace("\xa0", " ") in made.text.replace("\xa0", " ")
    assert "weakness" in made.text


def test_missing_modalities_are_paired_with_the_same_case(made):
    rows = {row["modalities"]: row for row in made.metrics["missing"] if row["arm"] == "semi"}
    assert len(rows) == 7
    assert rows["FLAIR+T1w+ceT1w"]["drop"]["mean"] is None
    assert rows["FLAIR+T1w"]["drop"]["mean"] == pytest.approx(-0.1)
    assert rows["ceT1w"]["drop"]["mean"] == pytest.approx(-0.2)
    assert "FLAIR + T1w + ceT1w" in made.text


def test_conformal_promises_and_refusals_are_counted(made):
    rows = {row["alpha"]: row for row in made.metrics["conformal"] if row["experiment"] == "sweep/semi-4"}
    assert (rows[0.1]["tested"], rows[0.1]["fnr"]["mean"]) == (0, None)
    assert rows[0.1]["refused"] == rows[0.2]["tested"] > 0
    assert rows[0.2]["within"] == 1.0
    assert 0.05 < rows[0.2]["fnr"]["mean"] < 0.2


def test_lesions_are_in_thirds(made):
    rows = pd.read_csv(made.out / "cohorts" / "phantom" / "sweep" / "semi-4" / "cases.csv")
    groups = extras.sizes(rows, made.metrics["lesion_sizes"]["tumour"])
    assert rows.assign(size=groups).drop_duplicates("case").groupby("size").size().to_dict() == {"small": 4, "medium": 4, "large": 4}
    assert rows.truth_ml[groups == "small"].max() < rows.truth_ml[groups == "medium"].min()
    sizes = made.metrics["experiments"]["sweep/semi-4"]["sizes"]["tumour"]
    assert sizes["large"]["dice"]["n"] == 4


def test_a_label_that_is_absent_has_no_size():
    rows = pd.DataFrame({"truth_ml": [0.0, 1.0, 2.0, 3.0]})
    assert extras.sizes(rows, [1.5, 2.5]).isna().tolist() == [True, False, False, False]
    assert extras.sizes(rows, None).isna().all()


def test_cost_and_retention(made):
    rows = {(row["arm"], row["protocol"], row["shots"]): row for row in made.metrics["cost"]}
    assert rows["semi", "within", 4]["train_seconds"] == 14.0
    assert rows["semi", "within", 4]["parameters"] == 52000
    curve = next(row for row in made.metrics["retention"] if row["experiment"] == "sweep/semi-4")
    assert curve["retained"] == sorted(curve["retained"])
    assert np.diff(curve["dice"]).max() < 0  # the more is kept, the more errors stay
    assert (made.out / "figures" / "phantom_retention.png").is_file()


def test_learning_curve_has_a_row_an_arm_protocol_and_shots(made):
    curve = pd.read_csv(made.out / "plots" / "learning_curve.csv")
    assert not curve.duplicated(["cohort", "arm", "protocol", "label", "shots"]).any()
    assert set(curve.protocol) == {"within", "transfer", "pooled"}
    assert 0 in set(curve.shots)


def test_the_page_stays_one_file_with_working_links(made):
    assert "<script" not in made.html
    targets, ids = re.findall(r'href="#([^"]+)"', made.html), re.findall(r' id="([^"]+)"', made.html)
    assert set(targets) <= set(ids)
    assert len(ids) == len(set(ids))
    assert made.html.count("<details") == made.html.count("</details>") > 8
    for title in ("SEMI: one hot", "U-Net from source", "HeMIS"):
        assert title in made.text


def test_figures_show_the_headline_and_the_best_baselines(tmp_path):
    file = small_params(tmp_path, experiments=PLAIN, **{"cohort.labels": ONE_LABEL})
    many = tuple(Arm(f"other-{index}", "baseline", -0.03 * index) for index in range(9))
    write_sweep(tmp_path / "cohorts", load_params(file), (ARMS[0], *many), conditions=(("within", 4),), subjects=4)
    cohort = collect(tmp_path / "cohorts", file)[0]
    assert cohort.drawn == ["semi", *(f"other-{index}" for index in range(MOST_DRAWN - 1))]


def test_evidence_is_written_between_markers_and_nowhere_else(made, tmp_path):
    document = tmp_path / "evidence.md"
    document.write_text("before\n<!-- evidence:phantom:begin -->\nold\n<!-- evidence:phantom:end -->\nkept\n"
                        "<!-- evidence:elsewhere:begin -->\nas it was\n<!-- evidence:elsewhere:end -->\n")
    evidence(made.out, document)
    text = document.read_text()
    assert text.startswith("before\n")
    assert "\nkept\n" in text
    assert "as it was" in text
    assert "old" not in text
    rows = {line.split(" | ")[0].lstrip("| "): line for line in text.splitlines() if line.startswith("| ")}
    ratio = next(line for claim, line in rows.items() if "4 labelled cases (within) at least 1.25" in claim)
    against = made.metrics["comparisons"]["sweep/semi-4 vs sweep/random-forest-4"]["tumour"]["dice"]["over_sites"]
    assert f"{against['ratio']:.2f} [{against['ratio_low']:.2f}," in ratio
    assert "| random forest | in part |" in ratio  # 1.2 times: above 1, short of 1.25
    assert "| no |" in next(line for claim, line in rows.items() if "pooled" in claim)  # HeMIS is better there
    assert "| no |" in next(line for claim, line in rows.items() if "text guidance" in claim)  # one-hot costs nothing
    assert "| yes |" in next(line for claim, line in rows.items() if "Adapting" in claim)
    before = text
    evidence(made.out, document)
    assert document.read_text() == before
