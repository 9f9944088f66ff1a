"""Whatever the orientation, spacing, order and scaling of a series' files: the same values at the same places in the world."""

from __future__ import annotations

import nibabel
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pipelines.ingest.convert import convert
from pipelines.ingest.source import SourceFile
from pipelines.ingest.volumes import Volume, read_nifti, write_image

PLACE_TOL_MM = 0.01  # headers of the tests have eight decimals


def read(folder) -> list:
    return [one.result for one in convert([SourceFile(path, (path.name,)) for path in sorted(folder.iterdir())])]


def sample(volume: Volume, points: np.ndarray) -> np.ndarray:
    """Values at world points (n, 3) that are voxel centres."""
    voxels = (np.linalg.inv(volume.affine) @ np.c_[points, np.ones(len(points))].T)[:3]
    nearest = np.rint(voxels).astype(int)
    np.testing.assert_allclose((voxels - nearest) * volume.spacing[:, None], 0, atol=PLACE_TOL_MM)
    return volume.array[tuple(nearest)]


def check(volume: Volume, values: np.ndarray, affine: np.ndarray) -> None:
    """`values` (slices, rows, columns) with `affine` are what the volume shows, at every voxel."""
    assert volume.array.size == values.size
    index = np.indices(values.shape).reshape(3, -1)
    points = (affine @ np.vstack([index, np.ones(index.shape[1])]))[:3].T
    np.testing.assert_allclose(sample(volume, points), values.ravel(), rtol=1e-6, atol=1e-6)
    step = affine[:3, 0]
    np.testing.assert_allclose(np.abs(volume.affine[:3, volume.slice_axis] @ step), step @ step, rtol=1e-3)


spacings = st.floats(0.3, 8).map(lambda value: round(value, 4))
series = st.fixed_dictionaries({
    "rotation": st.integers(0, 2**32 - 1), "spacing": st.tuples(spacings, spacings, spacings), "count": st.integers(2, 12),
    "size": st.tuples(st.integers(2, 9), st.integers(2, 9)), "seed": st.integers(0, 2**32 - 1), "flip": st.booleans(),
    "rescale": st.sampled_from(["none", "same", "per slice"]), "origin": st.tuples(*[st.floats(-300, 300).map(lambda value: round(value, 5))] * 3),
})


def made(make_series, case, folder):
    """A series as `case` says on disk; its values and affine."""
    rng = np.random.default_rng(case["seed"])
    axes = Rotation.random(random_state=case["rotation"]).as_matrix()
    axes[:, 2] *= -1 if case["flip"] else 1  # slices follow each other against the normal
    array = rng.integers(-2**15, 2**15, (case["count"], *case["size"]))
    slopes, intercept = np.ones(len(array)), 0.0
    if case["rescale"] != "none":
        slopes = slopes * np.round(rng.uniform(0.01, 50, len(array) if case["rescale"] == "per slice" else 1), 3)
        intercept = -1024.5
    numbers, names = rng.permutation(len(array)), [f"{number}" for number in rng.permutation(10 * len(array))[:len(array)]]

    def per_slice(dataset, index):
        dataset.InstanceNumber = int(numbers[index]) + 1
        if case["rescale"] != "none":
            dataset.RescaleSlope, dataset.RescaleIntercept = f"{slopes[index]:.3f}", intercept

    one = make_series(array, axes=axes, spacing=case["spacing"], origin=case["origin"], per_slice=per_slice)
    one.write(folder, names)
    return array * slopes[:, None, None] + intercept, one.affine


@given(case=series)
@settings(max_examples=60, deadline=None)
def test_any_series_is_read_where_it_lies(make_series, tmp_path_factory, case):
    folder = tmp_path_factory.mktemp("series")
    values, affine = made(make_series, case, folder)
    [volume] = read(folder)
    check(volume, values, affine)


@given(case=series, other=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_names_and_order_of_files_change_nothing(make_series, tmp_path_factory, case, other):
    folder, again = tmp_path_factory.mktemp("series"), tmp_path_factory.mktemp("again")
    made(make_series, case, folder)
    paths = sorted(folder.iterdir())
    for name, index in enumerate(np.random.default_rng(other).permutation(len(paths))):
        (again / f"{name}.ima").write_bytes(paths[index].read_bytes())
    [first], [second] = read(folder), read(again)
    np.testing.assert_array_equal(first.array, second.array)
    np.testing.assert_array_equal(first.affine, second.affine)
    assert first.slice_axis == second.slice_axis


@given(case=series)
@settings(max_examples=25, deadline=None)
def test_written_nifti_shows_the_same(make_series, tmp_path_factory, case):
    folder = tmp_path_factory.mktemp("series")
    values, affine = made(make_series, case, folder / "in")
    [volume] = read(folder / "in")
    write_image(folder / "image.nii.gz", volume)
    back = read_nifti(folder / "image.nii.gz")
    assert nibabel.load(folder / "image.nii.gz").get_data_dtype() in (np.int16, np.float32)
    assert np.linalg.norm(back.affine - volume.affine, axis=0).max() < PLACE_TOL_MM
    check(Volume(back.array, back.affine, volume.slice_axis), values, affine)
