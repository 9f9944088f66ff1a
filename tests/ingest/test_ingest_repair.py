"""A repaired series shows the object where it is; a series that cannot be repaired beyond doubt keeps its refusal."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.uid import CTImageStorage
from scipy.spatial.transform import Rotation

from pipelines.errors import Refused
from pipelines.ingest.repair import repaired

pytest.importorskip("dcm2niix", reason="the wheel of dcm2niix is not installed")

CENTRE, BESIDE, RADIUS = np.array([3.0, 5.0, 1.0]), np.array([20.0, -8.0, 6.0]), 18.0  # mm, LPS
DEPTHS = 3.0 * np.arange(24)
SHAPE, SPACING = (72, 80), (1.1, 0.9)
REFUSED = {code: Refused(code, "its slices slide 22 mm", "resample it") for code in ("tilted-stack", "uneven-spacing", "missing-slices")}


def ball(positions: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Stored values of slices through a ball of 1000 with a soft border, and of a small one beside it that makes it lopsided."""
    row, column = np.mgrid[:SHAPE[0], :SHAPE[1]]
    places = axes[:, 1] * SPACING[0] * row[..., None] + axes[:, 0] * SPACING[1] * column[..., None]
    volume = np.zeros((len(positions), *SHAPE))
    for centre, radius, value in ((CENTRE, RADIUS, 1000), (CENTRE + BESIDE, 5, 400)):
        distance = np.linalg.norm(positions[:, None, None] + places - centre, axis=-1)
        volume += value * np.clip((radius - distance) / 2 + 0.5, 0, 1)
    return volume.round().astype(int)


@pytest.fixture
def damaged(tmp_path, make_series):
    """Files of a CT of the ball: gantry tilted by `degrees`, slices at `depths`, all in a turned patient."""

    def make(degrees: float = 0.0, *, depths=DEPTHS, turn: Rotation | None = None, flip: bool = False, modality: str = "CT", broken: bool = False):
        turn = turn or Rotation.identity()
        table = turn.apply([0, 0, -1.0 if flip else 1.0])
        axes = (turn * Rotation.from_euler("x", degrees, degrees=True)).as_matrix()
        middle = axes[:, 0] * SPACING[1] * SHAPE[1] / 2 + axes[:, 1] * SPACING[0] * SHAPE[0] / 2
        positions = CENTRE - middle + np.outer(depths - np.median(depths), table)

        def per_slice(dataset, index):
            dataset.ImagePositionPatient = [f"{value:.6f}" for value in positions[index]]
            if modality == "CT":
                dataset.Modality, dataset.SOPClassUID = "CT", CTImageStorage
                dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
                dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
            if broken and index == 3:
                dataset.PixelData = dataset.PixelData[:-200]

        series = make_series(ball(positions, axes), axes=axes, spacing=(3.0, *SPACING), per_slice=per_slice, patient="Doe^Jane")
        return series.write(tmp_path / "in")

    return make


def offset(volume) -> float:
    """How far the centre of mass of the big ball lies from where it is, mm."""
    inside = np.argwhere(volume.array > volume.array.min() + 700)
    centre = (np.c_[inside, np.ones(len(inside))] @ volume.affine.T)[:, :3].mean(axis=0) * [-1, -1, 1]
    return float(np.linalg.norm(centre - CENTRE))


TURNS = [None, Rotation.from_euler("xyz", [0, 0, 20], degrees=True), Rotation.from_euler("xyz", [0, 10, 0], degrees=True)]


@pytest.mark.parametrize(("degrees", "flip"), [(-22, False), (-8, False), (5, False), (15, False), (25, False), (-15, True), (5, True), (18, True)])
def test_tilted_series_is_put_upright_where_it_is(damaged, degrees, flip, capfd):
    volume, note = repaired(damaged(degrees, flip=flip), REFUSED["tilted-stack"])
    assert offset(volume) < 0.5
    axes = volume.affine[:3, :3] / volume.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert volume.array.min() == -1024
    assert "dcm2niix 1.0" in note
    assert "Doe" not in note + "".join(capfd.readouterr())


UNEVEN = [np.r_[3.0 * np.arange(14), 39 + 5.0 * np.arange(1, 8)], np.r_[5.0 * np.arange(8), 35 + 2.5 * np.arange(1, 14)],
          np.cumsum(np.random.default_rng(0).uniform(2, 4, 24))]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("depths", UNEVEN)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_uneven_series_is_resampled_where_it_is(damaged, depths, turn, modality):
    volume, _ = repaired(damaged(depths=depths, turn=turn, modality=modality), REFUSED["uneven-spacing"])
    assert offset(volume) < 0.5


def check_kept(paths, code):
    with pytest.raises(Refused) as caught:
        repaired(paths, REFUSED[code])
    assert caught.value is REFUSED[code]


def test_other_codes_and_failures_keep_their_refusal(damaged):
    check_kept(damaged(), "missing-slices")
    check_kept(damaged(), "tilted-stack")  # dcm2niix sees nothing to repair
    check_kept(damaged(15, broken=True), "tilted-stack")


def test_tilt_that_dcm2niix_overlooks_keeps_its_refusal(damaged):
    check_kept(damaged(15, modality="MR"), "tilted-stack")  # it would write an upright grid as if there were no tilt


def test_tilt_that_dcm2niix_reports_but_does_not_repair_keeps_its_refusal(damaged):
    check_kept(damaged(25, flip=True), "tilted-stack")


def test_image_that_cannot_be_checked_keeps_its_refusal(damaged, monkeypatch):
    paths = damaged(15)
    monkeypatch.setattr("pipelines.ingest.repair.RESIDUAL", 1e-6)
    check_kept(paths, "tilted-stack")
