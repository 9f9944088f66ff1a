"""The phantom cohort: every subject of every site, simulated and written as DICOM. A subject depends on the seed, its site and its number only."""

from __future__ import annotations

import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from pipelines.errors import UsageError
from pipelines.outputs import staged_folder
from pipelines.params import Simulate
from pipelines.phantoms import anatomy, dicom, physics, scanner
from pipelines.phantoms.identity import invent
from pipelines.phantoms.sites import SITES, Pet, Site

#: Order of acquisition at every site; contrast agent is given before the last.
ORDER = ("T1w", "T2w", "FLAIR", "ceT1w")
SPACING_MM = 1.5
#: Counted as part of the inputs of a half-written cohort: raise it when the simulation changes, so that no old subject is taken up again.
VERSION = 1


@dataclass(frozen=True)
class Subject:
    """A simulated patient's body: what the scanners see."""

    head: anatomy.Head
    labels: np.ndarray  # of the head with its tumour
    biology: physics.Biology
    table: np.ndarray  # head to magnet, mm (4 x 4)


def simulate(params: Simulate, out: Path, jobs: int = 2) -> int:
    """Write the cohort as OUT/<site>/<patient>/<series>/*.dcm and return the number of subjects.

    Equal params make equal bytes. One subject more per site leaves the others as they were. A killed run goes on where it stopped.
    """
    from joblib import Parallel, delayed
    from joblib.parallel import parallel_config

    if jobs < 1:
        raise UsageError(f"--jobs is {jobs}; give a number of processes, 1 or more")
    work = [(site, index) for index in range(params.subjects_per_site) for site in SITES]
    # one thread a process: two processes fill two cores already
    with staged_folder(Path(out), inputs=f"{VERSION} {params.model_dump_json()}") as folder, parallel_config("loky", inner_max_num_threads=1):
        tasks = (delayed(simulate_subject)(params, site, index, folder) for site, index in work)
        for done, line in enumerate(Parallel(n_jobs=jobs, return_as="generator")(tasks), start=1):
            print(f"simulate {done}/{len(work)}: {line}", flush=True)
    return len(work)


def simulate_subject(params: Simulate, site_name: str, index: int, out: Path) -> str:
    """Simulate one subject into OUT/<site>/<patient>; does nothing when it is there already. Returns a line about it, without its identity."""
    from threadpoolctl import threadpool_limits

    site = SITES[site_name]
    rng = np.random.default_rng([params.seed, zlib.crc32(site_name.encode()), index])
    visit = invent(site, index, params.seed, rng)
    final = out / site_name / visit.folder
    lacks = missing_modality(site, params.missing_fraction, rng)
    if not final.exists():
        partial = out / site_name / f".partial-{index}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with threadpool_limits(1):  # BLAS sums in another order with more threads, and bytes must not depend on a machine's cores
            _scan(dicom.Exam(visit, site, partial), lacks, rng)
        partial.rename(final)
    return f"{site_name} subject {index + 1}" + (f", no {lacks}" if lacks else "")


def missing_modality(site: Site, fraction: float, rng: np.random.Generator) -> str | None:
    """Which modality the subject lacks, if any. FLAIR is never missing: the tumour is drawn on it."""
    candidates = ["T1w", "T2w", "ceT1w", *(["PET"] if site.pet else [])]
    draw, which = rng.random(), int(rng.integers(len(candidates)))
    return candidates[which] if draw < fraction else None


def draw_subject(rng: np.random.Generator) -> Subject:
    """A head with a tumour, lying in the magnet."""
    healthy = anatomy.head(rng, SPACING_MM)
    labels = anatomy.lesion(healthy, rng)
    table = np.eye(4)
    table[:3, 3] = rng.normal(0, 6, 3)
    return Subject(healthy, labels, physics.draw_biology(rng), table)


def _scan(exam: dicom.Exam, lacks: str | None, rng: np.random.Generator) -> None:
    """One visit: every sequence the subject has, the tumour drawn on FLAIR, PET where the site has a camera."""
    site, subject = exam.site, draw_subject(rng)
    affine = subject.head.affine
    maps = physics.tissue_maps(subject.head, subject.labels, subject.biology, site.field_t, rng)
    tilt = np.array(site.tilt_deg) + rng.normal(0, site.tilt_sd_deg, 3) * [1.0, 0.5, 0.5]
    streams = dict(zip([*ORDER, "PET"], rng.spawn(len(ORDER) + 1), strict=True))  # a missing series must not change the others
    for number, modality in enumerate(ORDER, start=2):
        if modality == lacks:
            continue
        series = site.series[modality]
        plane = scanner.axial_stack(pixel_mm=series.pixel_mm, matrix=series.matrix, step_mm=series.step_mm, slices=series.slices,
                                    thickness_mm=series.thickness_mm, tilt_deg=tilt)
        signal = physics.signal(maps.with_agent() if modality == "ceT1w" else maps, series.timing) * series.gain
        image = scanner.mr_image(signal, affine, plane, coil_strength=site.coil, snr=series.snr, rng=streams[modality])
        files = dicom.write_mr(exam, series, plane.moved(subject.table), image, number=number, contrast=modality == "ceT1w")
        if modality == "FLAIR":
            dicom.write_segmentation(exam, files, drawn_masks(subject.labels, affine, plane), number=500)
    if site.pet and lacks != "PET":
        _scan_pet(exam, site.pet, subject, streams["PET"])


def drawn_masks(labels: np.ndarray, affine: np.ndarray, plane: scanner.Plane) -> np.ndarray:
    """The tumour as a reader outlines it on a slice: a pixel is tumour when half of it is, of the class that fills most of it.

    Returns (slices, rows, columns, classes in the order of `anatomy.TUMOUR`), bool.
    """
    share = np.stack([scanner.acquire(labels == tissue, affine, plane) for tissue in anatomy.TUMOUR], axis=-1)
    inside = share.sum(axis=-1) >= 0.5
    return (share.argmax(axis=-1)[..., None] == np.arange(len(anatomy.TUMOUR))) & inside[..., None]


def _scan_pet(exam: dicom.Exam, pet: Pet, subject: Subject, rng: np.random.Generator) -> None:
    """The tracer's picture. On a PET camera of its own the patient lies a little differently, and its coordinates are its own."""
    lying = np.eye(4) if pet.same_frame else _rigid(rng)
    plane = scanner.axial_stack(pixel_mm=pet.pixel_mm, matrix=pet.matrix, step_mm=pet.step_mm, slices=pet.slices, thickness_mm=pet.step_mm,
                                tilt_deg=np.zeros(3))
    uptake = physics.fet_uptake(subject.labels, subject.biology, subject.head.spacing_mm, rng)
    suv = scanner.acquire(uptake, lying @ subject.head.affine, plane)
    image = physics.pet_image(suv, plane.voxel_mm, pet.fwhm_mm, pet.counts_per_suv, rng)
    dicom.write_pet(exam, pet, plane.moved(subject.table), image, number=900)


def _rigid(rng: np.random.Generator) -> np.ndarray:
    """A small rigid motion: a few degrees and millimetres."""
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", rng.normal(0, 2.5, 3), degrees=True).as_matrix()
    motion[:3, 3] = rng.normal(0, 4.0, 3)
    return motion
