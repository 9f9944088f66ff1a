from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from synthetic_heads import Source, grid_of, head, inside, lesion, points, rigid

from pipelines.cohort import cases_of, read_manifest, read_quarantine
from pipelines.errors import DataError, UsageError
from pipelines.resample.case import resample_case
from pipelines.resample.grid import Grid
from pipelines.resample.stage import resample_cohort
from pipelines.resample.volumes import Volume

AXIAL = grid_of((76, 92, 26), (2, 2, 6), (6, -4, 8))
SAGITTAL = grid_of((40, 92, 76), (4, 2, 2), (-2, 3, 5))
NAMES = {1: "Lesion"}


def fill(source: Source, subject: str = "a", **facts) -> Source:
    """A case of three images in one world and a label."""
    source.add(head(AXIAL, "t2"), "FLAIR", subject, manufacturer="SIEMENS", field_strength_t=3.0, tr_ms=9000.0, **facts)
    source.add(head(SAGITTAL, "t1", seed=1), "T1w", subject, te_ms=3.5, **facts)
    source.add(head(AXIAL, "map"), "ADC", subject, **facts)
    source.label(lesion(AXIAL), NAMES, subject, **facts)
    return source


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_case_comes_to_one_grid(source, make_params, tmp_path):
    resample_cohort(fill(source).write(), tmp_path / "out", make_params(), jobs=1)
    table = read_manifest(tmp_path / "out").set_index("modality")
    assert set(table.index) == {"FLAIR", "T1w", "ADC", "dseg", "brain"} and read_quarantine(tmp_path / "out").empty
    assert set(table["shape"]) == {"51x62x26"} and set(table.spacing_mm) == {"3x3x6"} and set(table.slice_axis) == {2}
    affines = [nibabel.load(tmp_path / "out" / path).affine for path in table.path]
    assert all(np.allclose(affine, affines[0]) for affine in affines)
    assert table.loc["FLAIR", "manufacturer"] == "SIEMENS" and table.loc["FLAIR", "tr_ms"] == 9000 and table.loc["T1w", "te_ms"] == 3.5
    assert "reference of the grid" in table.loc["FLAIR", "note"] and table.loc["dseg", "note"].startswith("lesion ")

    case, = cases_of(tmp_path / "out")
    world = np.moveaxis(points(Grid((51, 62, 26), affines[0])), case.slice_axis, 0)
    assert case.spacing_mm == (6, 3, 3) and case.foreground().shape == (26, 51, 62)
    truth = inside(world, "lesion")
    assert 2 * (truth & (case.label() == 1)).sum() / (truth.sum() + case.label().sum()) > 0.9
    for modality in ("FLAIR", "T1w"):
        image = case.image(modality)
        assert image.dtype == np.float32 and not image[~case.foreground()].any() and abs(np.median(image[case.foreground()])) < 0.1
        assert (image[inside(world, "lesion")].mean() > image[inside(world, "brain")].mean()) == (modality == "FLAIR")
    assert nibabel.load(tmp_path / "out" / table.loc["FLAIR", "path"]).get_data_dtype() == np.float32


def test_lookup_of_the_target_codes_is_written(source, make_params, tmp_path):
    resample_cohort(fill(source).write(), tmp_path / "out", make_params(), jobs=1)
    lookup, = (tmp_path / "out").rglob("*_dseg.tsv")
    assert lookup.read_text() == "index\tname\n1\tlesion\n"


def test_equal_inputs_make_equal_bytes_with_any_number_of_workers(source, make_params, tmp_path):
    folder = fill(fill(source, "a"), "b").write()
    resample_cohort(folder, tmp_path / "one", make_params(), jobs=1)
    resample_cohort(folder, tmp_path / "two", make_params(), jobs=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_a_killed_run_continues_with_the_cases_that_were_not_done(source, make_params, tmp_path, monkeypatch, capsys):
    folder, params, calls = fill(fill(source, "a"), "b").write(), make_params(), []

    def dies_at_the_second(source, out, rows, resample, *, labels):
        calls.append(rows[0]["subject"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return resample_case(source, out, rows, resample, labels=labels)

    monkeypatch.setattr("pipelines.resample.stage.resample_case", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        resample_cohort(folder, tmp_path / "out", params, jobs=1)
    assert not (tmp_path / "out").exists()
    resample_cohort(folder, tmp_path / "out", params, jobs=1)
    assert calls == ["a", "b", "b"] and "1 of 2 cases were finished" in capsys.readouterr().out
    monkeypatch.undo()
    resample_cohort(folder, tmp_path / "whole", params, jobs=1)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_another_frame_of_reference_is_registered_and_its_label_follows(source, make_params, tmp_path):
    move = rigid((4, -3, 6), (30, 12, -20))
    there = grid_of((76, 92, 26), (2, 2, 6), (1, 2, 3), center=(30, 12, -20))
    source.add(head(AXIAL, "t2"), "FLAIR", frame="1.2")
    source.add(head(there, "t1", move=move, seed=1), "T1w", frame="1.3")
    source.add(head(there, "map", move=move), "ADC", frame="1.3")
    source.label(lesion(there, move), NAMES, frame="1.3")
    resample_cohort(source.write(), tmp_path / "out", make_params(), jobs=1)
    table = read_manifest(tmp_path / "out").set_index("modality")
    for modality in ("T1w", "ADC", "dseg"):
        assert "registered to FLAIR by T1w: shift" in table.loc[modality, "note"]
    assert set(table.frame_of_reference) == {"1.2"}
    case, = cases_of(tmp_path / "out")
    truth = inside(np.moveaxis(points(Grid((51, 62, 26), nibabel.load(tmp_path / "out" / table.loc["FLAIR", "path"]).affine)), 2, 0), "lesion")
    assert 2 * (truth & (case.label() == 1)).sum() / (truth.sum() + case.label().sum()) > 0.85


def test_registration_can_be_left_out(source, make_params, tmp_path):
    source.add(head(AXIAL, "t2"), "FLAIR", frame="1.2")
    source.add(head(AXIAL, "t1"), "T1w", frame="1.3")
    resample_cohort(source.write(), tmp_path / "out", make_params(register_frames=False), jobs=1)
    assert "placed by its header" in read_manifest(tmp_path / "out").set_index("modality").loc["T1w", "note"]


def quarantined(folder: Path) -> dict[str, tuple[str, str]]:
    return {Path(row.item).name.removesuffix(".nii.gz").split("_")[-1]: (row.code, row.reason) for row in read_quarantine(folder).itertuples()}


def test_what_cannot_be_used_goes_to_quarantine_and_the_rest_goes_on(source, make_params, tmp_path):
    fill(source)
    truncated = source.add(head(AXIAL, "t1"), "T2w")
    truncated.write_bytes(truncated.read_bytes()[:3000])
    source.add(Volume(np.full(AXIAL.shape, 4.0), AXIAL), "CBF")
    source.add(head(grid_of((40, 40, 20), (2, 2, 4), center=(300, 0, 0)), "t1"), "RCBV")
    source.add(Volume(np.random.default_rng(0).normal(size=AXIAL.shape), AXIAL), "pet", frame="9.9")
    broken = source.add(head(AXIAL, "t1"), "bold")
    broken.unlink()
    resample_cohort(source.write(), tmp_path / "out", make_params(), jobs=1)
    found = quarantined(tmp_path / "out")
    assert {name: code for name, (code, _) in found.items()} == {
        "T2w": "unreadable", "CBF": "constant", "RCBV": "coverage", "pet": "registration", "bold": "unreadable"}
    assert str(tmp_path) not in (tmp_path / "out" / "quarantine.tsv").read_text()
    assert set(read_manifest(tmp_path / "out").modality) == {"FLAIR", "T1w", "ADC", "dseg", "brain"}


def test_the_next_reference_stands_in_for_an_unreadable_one(source, make_params, tmp_path):
    fill(source)
    (source.folder / source.rows[0]["path"]).write_bytes(b"no image")
    resample_cohort(source.write(), tmp_path / "out", make_params(), jobs=1)
    table = read_manifest(tmp_path / "out").set_index("modality")
    assert "reference" in table.loc["T1w", "note"] and set(table.slice_axis) == {0} and set(table.spacing_mm) == {"4x3x3"}


@pytest.mark.parametrize("label", [
    {"names": {1: "Vessel", 2: "Cyst"}, "code": "segments", "reason": "it has 'Vessel', 'Cyst'"},
    {"grid": grid_of((60, 60, 20), (1, 1, 1)), "code": "label-grid", "reason": "grid of its own, 60x60x20"},
    {"frame": "9.9", "code": "frame", "reason": "frame of reference"},
], ids=lambda label: label["code"])
def test_a_label_that_does_not_fit_is_refused_and_its_case_stays(source, make_params, tmp_path, label):
    source.add(head(AXIAL, "t2"), "FLAIR")
    source.label(lesion(label.get("grid", AXIAL)), label.get("names", NAMES), frame=label.get("frame", ""))
    resample_cohort(source.write(), tmp_path / "out", make_params(), jobs=1)
    code, reason = quarantined(tmp_path / "out")["dseg"]
    assert code == label["code"] and label["reason"] in reason
    case, = cases_of(tmp_path / "out")
    assert case.dseg is None


def test_a_case_without_reference_is_refused_whole(source, make_params, tmp_path):
    fill(source, "a")
    source.add(head(AXIAL, "map"), "ADC", "b")
    source.label(lesion(AXIAL), NAMES, "b")
    resample_cohort(source.write(), tmp_path / "out", make_params(), jobs=1)
    rows = read_quarantine(tmp_path / "out")
    assert list(rows.subject) == ["b", "b"] and set(rows.code) == {"no-reference"}
    assert not (tmp_path / "out" / "sub-b").exists()


def test_nothing_usable_is_an_error_in_one_sentence(source, make_params, tmp_path):
    source.add(head(AXIAL, "map"), "ADC")
    with pytest.raises(DataError, match=r"no case of .* can be used"):
        resample_cohort(source.write(), tmp_path / "out", make_params(), jobs=1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="does not exist"):
        resample_cohort(tmp_path / "nowhere", tmp_path / "out", make_params(), jobs=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"manifest\.tsv does not exist"):
        resample_cohort(tmp_path / "empty", tmp_path / "out", make_params(), jobs=1)


def test_values_that_are_not_finite_are_noted(source, make_params, tmp_path):
    image = head(AXIAL, "t2")
    image.array[3, 3, 3] = np.nan
    source.add(image, "FLAIR")
    resample_cohort(source.write(), tmp_path / "out", make_params(), jobs=1)
    assert "1 voxels without a finite value" in read_manifest(tmp_path / "out").note[0]
    assert np.isfinite(cases_of(tmp_path / "out")[0].image("FLAIR")).all()


def test_command_line(source, make_params, tmp_path):
    make_params()
    arguments = [sys.executable, "-m", "pipelines.resample", "--source", str(fill(source).write()), "--out", str(tmp_path / "out"),
                 "--params", str(tmp_path / "params.yaml"), "--jobs", "1"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "3 images, 1 labels, 0 to quarantine" in done.stdout
    wrong = subprocess.run([*arguments[:4], str(tmp_path / "nowhere"), *arguments[5:]], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ") and "Traceback" not in wrong.stderr
