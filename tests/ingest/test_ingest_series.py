"""DICOM series come out at the same places in the world with the same values, whatever their files are called."""

from __future__ import annotations

import nibabel
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pipelines.cohort import read_manifest, read_quarantine


def world_points(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(value, x, y, z) of every voxel, sorted by value."""
    index = np.indices(array.shape).reshape(3, -1)
    points = (affine @ np.vstack([index, np.ones(index.shape[1])]))[:3]
    rows = np.vstack([array.reshape(1, -1), points]).T
    return rows[np.argsort(rows[:, 0])]


def only_image(folder):
    image = nibabel.load(folder / read_manifest(folder).path[0])
    return np.asarray(image.dataobj), image.affine


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_orientation_order_and_names_give_the_same_world(seed, make_series, voxels, convert, tmp_path_factory):
    series = make_series(voxels, axes=Rotation.random(random_state=seed).as_matrix())
    folder = tmp_path_factory.mktemp("series")
    names = [f"{name:04d}" for name in np.random.default_rng(seed).permutation(len(voxels))]
    series.write(folder / "in", names)
    convert(folder / "in", folder / "out")
    array, affine = only_image(folder / "out")
    assert array.dtype == np.int16
    np.testing.assert_allclose(world_points(array, affine), world_points(voxels, series.affine), atol=1e-3)
    assert nibabel.aff2axcodes(affine) == ("R", "A", "S")
    row = read_manifest(folder / "out").iloc[0]
    spacing = [float(value) for value in row.spacing_mm.split("x")]
    assert np.isclose(spacing[row.slice_axis], 5.0)


def test_equal_inputs_make_equal_bytes(make_series, voxels, convert, tmp_path):
    series = make_series(voxels)
    series.write(tmp_path / "in" / "a")
    series.write(tmp_path / "renamed" / "x" / "y", [f"{name}" for name in (5, 3, 1, 0, 2, 4)])
    for source, out in (("in", "first"), ("renamed", "second")):
        convert(tmp_path / source, tmp_path / out)
    first, second = ({path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
                     for name in ("first", "second"))
    assert first == second


def test_each_slice_is_rescaled_by_its_own_slope(make_series, voxels, convert, tmp_path):
    def slope(dataset, index):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + index, -1

    series = make_series(voxels, per_slice=slope)
    series.write(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out")
    array, _ = only_image(tmp_path / "out")
    assert array.dtype == np.float32
    rescaled = voxels * (0.5 + np.arange(6))[:, None, None] - 1
    np.testing.assert_allclose(np.sort(array, axis=None), np.sort(rescaled, axis=None), rtol=1e-6)


def test_sessions_are_numbered_by_date_and_frames_told_apart(make_series, voxels, convert, tmp_path):
    for date in ("20210304", "20190506"):
        make_series(voxels + int(date[3]), study=date).write(tmp_path / "in" / date)
    convert(tmp_path / "in", tmp_path / "out")
    table = read_manifest(tmp_path / "out")
    assert list(table.session) == ["01", "02"]
    assert table.subject.nunique() == 1
    assert table.frame_of_reference.nunique() == 2
    first = np.asarray(nibabel.load(tmp_path / "out" / table.path[0]).dataobj)
    assert first.min() == 9  # the study of 2019


def test_finer_of_two_equal_modalities_is_kept_and_the_other_named(make_series, voxels, convert, tmp_path):
    make_series(voxels[:4], description="t1 coarse").write(tmp_path / "in" / "a")
    make_series(voxels, description="t1 fine").write(tmp_path / "in" / "b")
    convert(tmp_path / "in", tmp_path / "out")
    assert read_manifest(tmp_path / "out")["shape"].tolist() == ["8x7x6"]
    assert read_quarantine(tmp_path / "out").code.tolist() == ["duplicate-modality"]


def test_second_best_is_taken_when_the_best_cannot_be_read(make_series, voxels, convert, tmp_path):
    make_series(voxels[:4], description="t1 coarse").write(tmp_path / "in" / "a")
    broken = make_series(voxels, description="t1 fine").write(tmp_path / "in" / "b")[2]
    broken.write_bytes(broken.read_bytes()[:-60])
    convert(tmp_path / "in", tmp_path / "out")
    assert read_manifest(tmp_path / "out")["shape"].tolist() == ["8x7x4"]
    quarantine = read_quarantine(tmp_path / "out").iloc[0]
    assert quarantine.code == "truncated-file"
    assert "52 of 112 bytes" in quarantine.reason


def test_killed_run_is_resumed_with_the_same_result(make_series, voxels, convert, tmp_path, monkeypatch):
    for number in (1, 2):
        make_series(voxels, patient=f"patient-{number}").write(tmp_path / "in" / f"{number}")
    convert(tmp_path / "in", tmp_path / "whole")

    from pipelines.ingest import jobs, stage

    def killed(job, folder, done=[]):  # noqa: B006 - remembers its calls
        if done:
            raise KeyboardInterrupt
        done.append(job)
        return jobs.run(job, folder)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "run", killed)
        try:
            convert(tmp_path / "in", tmp_path / "out")
        except KeyboardInterrupt:
            assert not (tmp_path / "out").exists()
    written = list((tmp_path / ".out.partial").rglob("*.nii.gz"))
    assert len(written) == 1
    before = written[0].stat().st_mtime_ns
    convert(tmp_path / "in", tmp_path / "out")
    resumed = tmp_path / "out" / written[0].relative_to(tmp_path / ".out.partial")
    assert resumed.stat().st_mtime_ns == before
    assert (tmp_path / "out" / "manifest.tsv").read_bytes() == (tmp_path / "whole" / "manifest.tsv").read_bytes()
    assert not any(path.name.startswith(".") for path in (tmp_path / "out").iterdir())
