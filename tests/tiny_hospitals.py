"""Hospitals whose scanners make few, coarse slices, so that a real path from DICOM to a model takes seconds, and a project with two of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml

from pipelines.params import Simulate
from pipelines.phantoms import cohort, identity, sites
from tests.tiny_kept import kept
from tests.tiny_store import fresh_store

ROOT = Path(__file__).parents[1]
QUICK = {"system": "linear-probe", "rehearsal": 4,
         "params": {"strengths": [0.01], "prior_exponents": [0.0, 0.5, 1.0], "voxels_per_class": 1000, "iterations": 60}}
SEED = 11
MATRIX, SLICES, SNR = 88, 16, 90
PIXEL_MM, BODY_MM = 2.5, 3.0  # of the resampled images, and of the simulated body


def coarse(site: sites.Site) -> sites.Site:
    """The same hospital with thick slices of large pixels, without PET and without T1 before contrast."""
    def fewer(series: sites.Series) -> sites.Series:
        fewer_slices = series.slices / SLICES
        return replace(series, pixel_mm=series.pixel_mm * series.matrix / MATRIX, matrix=MATRIX, slices=SLICES,
                       step_mm=series.step_mm * fewer_slices, thickness_mm=series.thickness_mm * fewer_slices, snr=SNR)

    return replace(site, series={name: fewer(series) for name, series in site.series.items()}, pet=None)


def make_studies(folder: Path, **counts: int) -> Path:
    """`folder/<site>/<patient>/...` of `counts` patients a site ('site_a=5'). Patients that are there already stay as they are."""
    for name, count in counts.items():
        site = name.replace("_", "-")
        for index in range(count):  # a patient depends on seed, site, number and the names there are, and on nothing else
            made = kept(f"{site}-{index}-{identity.FAMILY[0]}", partial(_simulate, site, index))
            [patient] = (made / site).iterdir()
            if not (folder / site / patient.name).exists():
                shutil.copytree(patient, folder / site / patient.name)
    return folder


def _simulate(site: str, index: int, folder: Path) -> None:
    before, body = dict(sites.SITES), cohort.SPACING_MM
    cohort.SPACING_MM = BODY_MM
    sites.SITES.update({name: coarse(place) for name, place in before.items()})
    try:
        cohort.simulate_subject(Simulate(seed=SEED, subjects_per_site=index + 1, missing_fraction=0.0), site, index, folder)
    finally:
        sites.SITES.update(before)
        cohort.SPACING_MM = body


def make_project(folder: Path, **service) -> Path:
    """A project's folder with this code and params of two sites, whose inboxes are watched folders of their own."""
    folder.mkdir(parents=True)
    for name in ("pipelines", "tasks", "flows", "models", "conf", "requirements.lock"):
        (folder / name).symlink_to(ROOT / name)
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["resample"] |= {"in_plane_mm": PIXEL_MM, "reference": ["FLAIR"]}
    content["evaluate"]["bootstrap"] = 200
    content["service"] |= {"adapt": QUICK, "sites": {name: {"settle_s": 0} for name in ("site-a", "site-b")}} | service
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    fresh_store(folder)
    return folder


def mislabel(patient: Path) -> None:
    """Mirror every drawn segment of a patient's studies, left and right: a plausible mask where no lesion is."""
    import numpy as np
    from pydicom import dcmread
    from pydicom.pixels import pack_bits

    for path in sorted(patient.rglob("*.dcm")):
        dataset = dcmread(path)
        if dataset.Modality == "SEG":
            frames = np.flip(dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns), axis=2)
            dataset.PixelData = pack_bits(np.ascontiguousarray(frames).astype(np.uint8).ravel())
            dataset.save_as(path)
