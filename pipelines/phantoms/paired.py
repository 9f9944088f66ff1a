"""A simulated cohort of MR and PET pairs in which neither image tells the answer alone, and their sum does not either.

Every patient has two lesions that take up contrast agent, one in each hemisphere; each is solid or a rim around a dead core, as a coin falls. One of
them is active on PET, whichever it is, the other hardly; PET cannot see what a lesion is made of, because the tracer is spread evenly over it. The
question is of what kind the active lesion is. PET alone says nothing. MR alone knows when both lesions are of one kind, and has to guess in the
other half of the patients, whose answer is an exclusive or of two sides: only who looks at the MR lesion that PET points to can tell. (What this
stands for: after radiation, which of two enhancing lesions is tumour.)

No sum of the images' own decisions gives it; features of both images read jointly do, and so late fusion can learn it. Sites differ in field
strength, sequence, coil, noise and camera like those of the main phantom cohort. Places, sizes, uptake and the uptake of vessels and muscle vary and
mean nothing. No patient, tracer or scanner was measured.
"""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from pipelines.errors import UsageError
from pipelines.outputs import staged_folder, write_text
from pipelines.params import Simulate
from pipelines.phantoms import anatomy, physics, scanner
from pipelines.phantoms.anatomy import Tissue
from pipelines.phantoms.sites import SITES

#: Counted as part of the inputs of a half-written cohort: raise it when the simulation changes.
VERSION = 2
SPACING_MM = 3.0
#: The answer's column in participants.tsv, and its values: solid, rim.
OUTCOME, SOLID, RIM = "active_lesion", 1, 2
RADIUS_MM = (11.0, 15.0)
RIM_SHARE = (0.30, 0.42)  # of the radius that is rim
ACTIVE_SUV, INACTIVE_SUV = (2.8, 4.2), (1.1, 1.5)
#: Slices are thick and few, and the lesions lie in the middle one.
SLICES, STEP_MM, OFF_CENTRE_MM = 3, 10.0, 3.0
MR_PIXEL_MM, PET_PIXEL_MM, FIELD_OF_VIEW_MM = 2.5, 3.75, 240.0
#: site -> (resolution of its camera in mm, counts per SUV); the sites without a camera of their own in the main cohort have one here.
CAMERAS = {"site-a": (4.9, 220), "site-b": (7.0, 90), "site-c": (6.2, 120), "site-d": (5.5, 160)}


@dataclass(frozen=True)
class Lesion:
    """Where it is (mm), how large, and what it is."""

    centre_mm: np.ndarray
    radii_mm: np.ndarray
    rim: bool
    active: bool


def simulate_paired(params: Simulate, out: Path, jobs: int = 2) -> int:
    """Write OUT/<site>/sub-*/ as BIDS NIfTI with participants.tsv (column `OUTCOME`), and return the number of subjects.

    Equal params make equal images. A killed run goes on where it stopped.
    """
    from joblib import Parallel, delayed
    from joblib.parallel import parallel_config

    if jobs < 1:
        raise UsageError(f"--jobs is {jobs}; give a number of processes, 1 or more")
    work = [(site, index) for site in SITES for index in range(params.subjects_per_site)]
    with staged_folder(Path(out), inputs=f"paired {VERSION} {params.model_dump_json()}") as folder, parallel_config("loky", inner_max_num_threads=1):
        tasks = (delayed(simulate_pair)(params, site, index, folder) for site, index in work)
        rows = []
        for done, row in enumerate(Parallel(n_jobs=jobs, return_as="generator")(tasks), start=1):
            rows.append(row)
            if done % 50 == 0 or done == len(work):
                print(f"simulate {done}/{len(work)} pairs", flush=True)
        write_text(folder / "participants.tsv", "\n".join([f"participant_id\tsite\t{OUTCOME}", *rows]) + "\n")
        write_text(folder / "dataset_description.json", json.dumps({"Name": "paired phantom", "BIDSVersion": "1.10.0"}) + "\n")
    return len(work)


def simulate_pair(params: Simulate, site_name: str, index: int, out: Path) -> str:
    """Simulate one subject into OUT/<site>/sub-*, unless it is there. Returns its row of participants.tsv."""
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng([params.seed, zlib.crc32(b"paired"), zlib.crc32(site_name.encode()), index])
    left_rim, right_rim, left_active = coins = tuple(bool(coin) for coin in rng.integers(0, 2, 3))
    subject = f"{site_name[-1]}{index:04d}"
    final = out / site_name / f"sub-{subject}"
    if not final.is_dir():
        partial = out / site_name / f".partial-{index}"
        shutil.rmtree(partial, ignore_errors=True)
        with threadpool_limits(1):  # sums in another order differ in the last bit
            _scan(partial, subject, site_name, coins, rng)
        partial.rename(final)
    return f"sub-{subject}\t{site_name}\t{RIM if (left_rim if left_active else right_rim) else SOLID}"


def draw_lesions(healthy: anatomy.Head, left_rim: bool, right_rim: bool, left_active: bool, rng: np.random.Generator) -> list[Lesion]:
    """One lesion in each hemisphere (the left has negative x), in brain tissue and near the middle slice."""
    brain = np.argwhere(np.isin(healthy.labels, (Tissue.GREY, Tissue.WHITE)))
    where = brain @ healthy.affine[:3, :3].T + healthy.affine[:3, 3]
    near = np.abs(where[:, 2] - _level_mm()) <= OFF_CENTRE_MM
    lesions = []
    for left in (True, False):
        sideways = -where[:, 0] if left else where[:, 0]
        usable = where[near & (sideways > RADIUS_MM[1] + 4) & (sideways < 52) & (np.abs(where[:, 1] + 18) < 52)]
        centre = usable[rng.integers(len(usable))]
        radii = rng.uniform(*RADIUS_MM) * np.exp(rng.normal(0, 0.08, 3))
        lesions.append(Lesion(centre, radii, rim=left_rim if left else right_rim, active=left == left_active))
    return lesions


def painted(healthy: anatomy.Head, lesions: list[Lesion], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The head's labels with the lesions, and how far into a lesion each voxel is: `(lesions, X, Y, Z)`, 1 at its centre, 0 at its edge."""
    labels = healthy.labels.copy()
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in labels.shape), indexing="ij"), -1) @ healthy.affine[:3, :3].T + healthy.affine[:3, 3]
    inside = np.isin(labels, (Tissue.GREY, Tissue.WHITE, Tissue.GLIOSIS, Tissue.VENTRICLE, Tissue.CSF))
    rough = anatomy.smooth_noise(rng, labels.shape, SPACING_MM, 8)
    depths = []
    for lesion in lesions:
        depth = 1 - np.linalg.norm((grid - lesion.centre_mm) / lesion.radii_mm, axis=-1) + 0.06 * rough
        depth = np.where(inside, depth, 0).clip(0, 1)
        share = rng.uniform(*RIM_SHARE)
        labels[depth > 0] = Tissue.ENHANCING
        if lesion.rim:
            labels[depth > share] = Tissue.NECROSIS
        depths.append(depth)
    return labels, np.stack(depths)


def uptake(healthy: anatomy.Head, lesions: list[Lesion], depths: np.ndarray, biology: physics.Biology, rng: np.random.Generator) -> np.ndarray:
    """Tracer uptake (SUV) of every voxel: the healthy head's, and in a lesion one value whatever it is made of."""
    suv = physics.fet_uptake(healthy.labels, biology, SPACING_MM, rng)
    for lesion, depth in zip(lesions, depths, strict=True):
        suv = np.where(depth > 0, rng.uniform(*(ACTIVE_SUV if lesion.active else INACTIVE_SUV)), suv)
    return suv.astype(np.float32)


def _level_mm() -> float:
    """Height of the middle slice, mm."""
    return float(anatomy.BOX_MM.mean(axis=1)[2])


def _plane(pixel_mm: float) -> scanner.Plane:
    return scanner.axial_stack(pixel_mm=pixel_mm, matrix=round(FIELD_OF_VIEW_MM / pixel_mm), step_mm=STEP_MM, slices=SLICES, thickness_mm=STEP_MM,
                               tilt_deg=np.zeros(3))


def _scan(folder: Path, subject: str, site_name: str, coins: tuple[bool, ...], rng: np.random.Generator) -> None:
    site, (fwhm_mm, counts) = SITES[site_name], CAMERAS[site_name]
    healthy = anatomy.head(rng, SPACING_MM)
    biology = physics.draw_biology(rng)
    biology = physics.Biology(rng.uniform(0.3, 0.8), biology.oedema, biology.oedema_reach_mm, 0.0, biology.tissue_scale)  # both lesions enhance
    lesions = draw_lesions(healthy, *coins, rng)
    labels, depths = painted(healthy, lesions, rng)
    maps = physics.tissue_maps(healthy, labels, biology, site.field_t, rng).with_agent()
    series, plane = site.series["ceT1w"], _plane(MR_PIXEL_MM)
    mr = scanner.mr_image(physics.signal(maps, series.timing) * series.gain, healthy.affine, plane, coil_strength=site.coil, snr=series.snr, rng=rng)
    _write(folder / "anat" / f"sub-{subject}_ce-gadolinium_T1w.nii.gz", mr, plane)
    camera = _plane(PET_PIXEL_MM)
    suv = scanner.acquire(uptake(healthy, lesions, depths, biology, rng), healthy.affine, camera)
    blur = [0 if mm > fwhm_mm else fwhm_mm / 2.355 / mm for mm in camera.voxel_mm]
    seen = ndimage.gaussian_filter(suv, blur)
    _write(folder / "pet" / f"sub-{subject}_pet.nii.gz", rng.poisson(np.maximum(seen, 0) * counts) / counts, camera)


def _write(path: Path, image: np.ndarray, plane: scanner.Plane) -> None:
    """A stack `(slices, rows, columns)` as NIfTI, whose axes are columns, rows, slices."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(image.T.astype(np.float32)), plane.affine[:, [2, 1, 0, 3]]), path)
