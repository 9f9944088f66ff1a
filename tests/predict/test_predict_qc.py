"""The verdict: what is odd is withheld with the reason, what is not is not, and what could not be checked is said."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tiny_studies import Look, settings, write_study

from pipelines.errors import DataError
from pipelines.predict.bundle import load_model
from pipelines.predict.qc import check_volume
from pipelines.predict.run import predict_study
from pipelines.sites.params import Quality
from pipelines.sites.typical import Reference, mahalanobis, reference_of

ODD = {
    "inverted contrast": (30, Look(contrast=-1.0)),
    "another body": (31, Look(shape=(22, 40, 90), spacing=(2.5, 2.4, 1.6), contrast=0.2, noise=0.5)),
    "another scanner": (32, Look(spacing=(9.0, 2.6, 2.6), shape=(5, 42, 37), noise=0.5)),
}


def written(out) -> set[str]:
    return {path.name.rpartition("_")[2] for path in out.iterdir()}


def test_a_sibling_of_the_training_cases_passes(predicted):
    verdict, out, _ = predicted(30)
    assert not verdict.withheld, verdict.reasons()
    assert verdict.typicality.p_tail > 0.05
    assert written(out) == {"qc.json", "overlay.png", "seg.dcm", "probability.dcm", "uncertainty.dcm"}
    record = json.loads((out / "qc.json").read_text())
    assert record["volumes_ml"] == {name: round(value, 4) for name, value in verdict.volumes_ml.items()}
    assert out.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_study_is_withheld_with_the_reason(predicted, kind):
    number, look = ODD[kind]
    verdict, out, _ = predicted(number, look)
    assert verdict.withheld
    assert "does not look like the site's cases" in verdict.reasons()
    assert "8 cases allow none below 0.11" in verdict.reasons(), "what few cases cannot show is said"
    assert written(out) == {"qc.json"}
    record = json.loads((out / "qc.json").read_text())
    assert record["withheld"]
    assert "--even-if-withheld" in record["what_now"]
    assert record["files"] == []


def test_a_withheld_result_comes_when_asked_for_and_says_so(predicted):
    verdict, out, _ = predicted(30, Look(contrast=-1.0), even_if_withheld=True)
    assert (verdict.withheld, verdict.released, verdict.delivered) == (True, True, True)
    assert "seg.dcm" in written(out)
    assert "do not use it unseen" in json.loads((out / "qc.json").read_text())["what_now"]


def test_a_missing_modality_is_withheld_where_params_want_it_and_else_stated(predicted):
    verdict, out, _ = predicted(33, Look(modalities=("FLAIR",)), required=["T1w", "FLAIR"])
    assert verdict.reasons() == "T1w missing, which params service.quality.required asks for"
    assert written(out) == {"qc.json"}
    verdict, out, _ = predicted(33, Look(modalities=("FLAIR",)), name="free")
    assert "predicted without T1w" in [finding.text for finding in verdict.findings]
    assert "seg.dcm" in written(out)


def test_a_study_of_unknown_modalities_alone_is_withheld_whoever_asks(predicted):
    verdict, out, _ = predicted(34, Look(modalities=("T2w",)), even_if_withheld=True)
    assert not verdict.delivered
    assert "none of the modalities that the model knows (T1w, FLAIR) is there" in verdict.reasons()
    assert written(out) == {"qc.json"}


def test_volumes_beyond_the_bounds_are_withheld_and_none_at_all_is_a_result(predicted):
    verdict, _, _ = predicted(30, largest_ml=0.5)
    assert "more than 0.5 ml (params service.quality.largest_ml)" in verdict.reasons()
    (small,) = check_volume({"a": 0.1, "b": 0.2}, Quality(smallest_ml=0.5))
    assert small.withholds
    assert small.text == "0.3 ml segmented in all, less than 0.5 ml (params service.quality.smallest_ml)"
    (none,) = check_volume({"a": 0.0}, Quality(smallest_ml=0.5))
    assert not none.withholds
    assert "nothing was found" in none.text
    assert check_volume({"a": 3.0}, Quality()) == []


def test_without_statistics_it_is_said_that_nothing_was_checked(bundle, backbone, tmp_path):
    shutil.copytree(bundle, tmp_path / "bare", ignore=shutil.ignore_patterns("quality.*"))
    model = load_model(tmp_path / "bare", backbone)
    verdict = predict_study(write_study(tmp_path / "study", 30), tmp_path / "out", model, settings())
    assert verdict.typicality is None
    assert "not checked whether the study looks like the site's cases: the model came without their statistics" in [
        finding.text for finding in verdict.findings]


def test_what_cannot_be_used_is_stated(predicted, model, tmp_path):
    study = write_study(tmp_path / "holes", 30)
    for path in list(study.glob("*T1*/*.dcm"))[3:5]:
        path.unlink()
    verdict = predict_study(study, tmp_path / "holes-out", model, settings())
    assert any(finding.check == "series" and "missing" in finding.text for finding in verdict.findings)
    assert "predicted without T1w" in [finding.text for finding in verdict.findings]


def test_one_study_at_a_time_and_only_dicom(model, tmp_path):
    for number in (1, 2):
        write_study(tmp_path / "two" / str(number), number)
    with pytest.raises(DataError, match="holds 2 studies"):
        predict_study(tmp_path / "two", tmp_path / "out", model, settings())
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").write_text("no image")
    with pytest.raises(DataError, match="holds no DICOM file"):
        predict_study(tmp_path / "none", tmp_path / "out", model, settings())
    assert not (tmp_path / "out").exists()


def sites_of_vectors(count: int, width: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@pytest.mark.parametrize("count", [5, 30])
def test_p_values_of_cases_like_the_others_are_not_small_more_often_than_they_say(count):
    """Over 200 sites: a new case of the site's own kind is below 0.1 in about one of ten, by rank exactly, by the tail roughly."""
    p_rank, p_tail = [], []
    for seed in range(200):
        rows = sites_of_vectors(count + 1, seed=seed)
        found = Reference("s", "f", {"FLAIR": rows[:-1]}).compare({"FLAIR": rows[-1]})
        p_rank.append(found.p_rank)
        p_tail.append(found.p_tail)
    assert min(p_rank) >= 1 / (count + 1)
    assert np.mean(np.array(p_rank) <= 0.2) < 0.29
    assert np.mean(np.array(p_tail) <= 0.1) < 0.17


def test_rank_decides_where_cases_are_many_enough():
    rows = sites_of_vectors(150)
    reference = Reference("s", "f", {"FLAIR": rows[:120]})
    far, near = reference.compare({"FLAIR": rows[0] + 9}), reference.compare({"FLAIR": rows[121]})
    assert far.smallest < 0.01
    assert far.p(0.01) == far.p_rank == far.smallest
    assert near.p(0.01) == near.p_rank > 0.01
    assert far.p(0.001) == far.p_tail < 1e-3
    assert Reference("s", "f", {"FLAIR": rows[:3]}).compare({"FLAIR": rows[5]}) is None


def test_missing_modalities_of_some_cases_do_not_count_against_a_study():
    flair, t1 = sites_of_vectors(9), sites_of_vectors(9, seed=1)
    t1[:4] = np.nan
    reference = Reference("s", "f", {"FLAIR": flair, "T1w": t1})
    assert reference.compare({"FLAIR": flair[0]}).cases == 9
    assert reference.compare({"FLAIR": flair[0] * 0.9, "T1w": t1[5]}).p_tail > 0.05
    assert reference.compare({"PET": flair[0]}) is None


def test_distance_is_that_of_the_shrunk_covariance():
    from sklearn.covariance import LedoitWolf

    rows, new = sites_of_vectors(7, 20).astype(float), np.linspace(-1, 2, 20)
    fitted = LedoitWolf().fit(rows)
    expected = (new - fitted.location_) @ fitted.precision_ @ (new - fitted.location_) / 20
    assert mahalanobis(rows, new) == pytest.approx(expected, rel=1e-6)


def test_statistics_are_kept_with_the_model_and_name_nobody(bundle, model, tmp_path):
    kept = Reference.load(bundle / "fit")
    assert (kept.cases, kept.site, sorted(kept.vectors)) == (8, "site-b", ["FLAIR", "T1w"])
    kept.save(tmp_path)
    again = Reference.load(tmp_path)
    np.testing.assert_array_equal(again.vectors["FLAIR"], kept.vectors["FLAIR"])
    assert set(json.loads((tmp_path / "quality.json").read_text())) == {"backbone", "cases", "modalities", "site", "smallest_rank_p"}
    (tmp_path / "quality.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match="damaged"):
        Reference.load(tmp_path)
    with pytest.raises(DataError, match="no case"):
        reference_of([], model.fitted.task)


def test_a_folder_that_is_no_model_is_refused(backbone, tmp_path):
    with pytest.raises(DataError, match="is no model"):
        load_model(tmp_path, backbone)
