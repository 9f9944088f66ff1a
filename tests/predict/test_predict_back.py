"""There and back: a mask brought to the working grid as labels are, and home again as predictions are, lies on itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from tiny_studies import AXIAL, CORONAL, SAGITTAL, Look, tilted, tissues, write_study
from tiny_studies import settings as params_with

from pipelines.ingest.frames import Frame
from pipelines.ingest.volumes import canonical
from pipelines.predict.back import on_slices, onto_grid
from pipelines.predict.study import opened
from pipelines.resample.grid import Grid, working_grid
from pipelines.resample.labels import resample_label
from pipelines.resample.volumes import Volume

angles = st.tuples(*[st.floats(-40, 40)] * 3)
steps = st.tuples(st.floats(2.5, 8), st.floats(0.6, 2.4), st.floats(0.6, 2.4))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@settings(max_examples=30, deadline=None)
@given(angles, steps, st.permutations([0, 1, 2]), st.tuples(*[st.booleans()] * 3), st.integers(0, 99))
def test_frames_find_their_voxels_whatever_the_orientation(turn, spacing, order, flips, seed):
    """A volume read from slices gives each slice its own pixels back, exactly: oblique, flipped and permuted."""
    random = np.random.default_rng(seed)
    axes = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.eye(3)[:, order] * np.where(flips, -1, 1)
    array = random.permutation(5 * 7 * 6).reshape(5, 7, 6)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * spacing, random.uniform(-90, 90, 3)
    volume = canonical(array, affine, 0)
    assert Grid(volume.array.shape, volume.affine).slice_axis == volume.slice_axis or max(spacing) > spacing[0]
    lps = np.array([-1, -1, 1.0])
    frames = [Frame(index, 0, array.shape[1:], (*(axes[:, 2] * lps), *(axes[:, 1] * lps)),
                    tuple((affine[:3, 3] + index * affine[:3, 0]) * lps), tuple(spacing[1:])) for index in range(len(array))]
    np.testing.assert_array_equal(on_slices(volume.array, Grid(volume.array.shape, volume.affine), frames), array)


@settings(max_examples=25, deadline=None)
@given(angles, steps, st.floats(0.8, 2.2), st.floats(9, 16), st.integers(0, 99))
def test_a_mask_there_and_back_lies_on_itself(turn, spacing, in_plane_mm, radius_mm, seed):
    """Two nested balls on any grid: brought to the working grid and back, each covers itself, and its centre has not moved."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() * spacing
    home = Grid(tuple(int(np.ceil(60 / step)) for step in spacing), affine)
    index = np.stack(np.meshgrid(*map(np.arange, home.shape), indexing="ij"), axis=-1)
    middle = home.center() + np.random.default_rng(seed).uniform(-8, 8, 3)
    away = np.linalg.norm(home.world(index) - middle, axis=-1)
    label = np.where(away < 0.6 * radius_mm, 1, np.where(away < radius_mm, 2, 0)).astype(np.uint8)
    assume(min((label == value).sum() for value in (1, 2)) > 100)
    working, axis = working_grid(home, in_plane_mm)
    there, _ = resample_label(Volume(label, home), {1: 1, 2: 2}, ["core", "rim"], working)
    certain = np.stack([np.moveaxis(there == value, axis, 0) for value in range(3)]).astype(np.float32)
    back = onto_grid(certain, axis, working, home)
    np.testing.assert_allclose(back.sum(axis=0), 1, atol=1e-5)
    found = back.argmax(axis=0)
    assert overlap(found > 0, label > 0) > 0.9
    assert overlap(found == 1, label == 1) > 0.85
    shift = home.world(np.argwhere(found > 0)).mean(axis=0) - home.world(np.argwhere(label > 0)).mean(axis=0)
    assert np.linalg.norm(shift) < 0.3 * max(in_plane_mm, 1)


def test_on_one_and_the_same_grid_nothing_changes():
    home = Grid((20, 24, 6), np.diag([1.5, 1.5, 5.0, 1.0]))
    working, axis = working_grid(home, 1.5)
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], size=(6, 20, 24)).astype(np.float32)
    back = onto_grid(np.moveaxis(probabilities, -1, 0), axis, working, home)
    np.testing.assert_allclose(np.moveaxis(back, (0, 3), (-1, 0)), probabilities, atol=1e-6)


LOOKS = st.builds(
    lambda axes, turn, step, pixel, number: SimpleNamespace(number=number, look=Look(
        axes=tilted(axes, turn), spacing=(step, pixel[0], pixel[1]), outlined=True,
        shape=(int(64 / step), int(100 / pixel[0]), int(96 / pixel[1])))),
    st.sampled_from([AXIAL, AXIAL * np.array([-1, 1, 1]), CORONAL, SAGITTAL * np.array([1, -1, -1])]), st.tuples(*[st.floats(-18, 18)] * 3),
    st.floats(3, 7.5), st.tuples(st.floats(0.8, 2), st.floats(0.8, 2)), st.integers(0, 30))


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(LOOKS)
def test_a_drawn_tumour_there_and_back_through_the_real_stages(tmp_path_factory, drawn):
    """DICOM with its outline, ingested and resampled; the outline as a prediction of itself ends on the slices and pixels that it was drawn on."""
    folder = write_study(tmp_path_factory.mktemp("study") / "study", drawn.number, drawn.look)
    rng = np.random.default_rng([7, drawn.number])
    _draw_identity(rng, drawn.number)
    truth = tissues(drawn.look.plane(drawn.number), drawn.look, rng)
    with opened(folder, params_with(), "site-b") as study:
        label = study.case.label()
        certain = np.stack([label == value for value in range(3)]).astype(np.float32)
        back = onto_grid(certain, study.case.slice_axis, study.working, study.home).argmax(axis=0)
        found = on_slices(back, study.home, study.frames)
        first = [float(value) for value in study.datasets[0].ImagePositionPatient]
    reverse = not np.allclose(first, drawn.look.plane(drawn.number).affine[:3, 3] * [-1, -1, 1], atol=1e-3)
    found = found[::-1] if reverse else found  # a stack is put in order along its own normal
    assert overlap(found > 0, truth >= 3) > 0.9
    assert overlap(found == 1, truth == 4) > 0.8


def _draw_identity(rng: np.random.Generator, number: int) -> None:
    """The invented patient is drawn from the same stream before the tissues are."""
    from pipelines.phantoms.identity import invent
    from pipelines.phantoms.sites import SITES

    invent(SITES["site-b"], number, 3, rng)


def test_a_frame_off_the_grid_is_refused():
    from pipelines.errors import Refused

    home = Grid((6, 7, 5), np.diag([1.0, 1.0, 5.0, 1.0]))
    frame = Frame(0, 0, (7, 6), (1, 0, 0, 0, 1, 0), (0.4, 0, 0), (1.0, 1.0))
    with pytest.raises(Refused):
        on_slices(np.zeros(home.shape), home, [frame])
