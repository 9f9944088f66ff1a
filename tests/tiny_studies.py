"""DICOM studies small enough to predict in a second: a head with a tumour on a few coarse slices, in any orientation, written as a scanner would."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
from scipy.spatial.transform import Rotation

from pipelines.cohort import Case, cases_of
from pipelines.params import Params, load_params
from pipelines.phantoms import dicom
from pipelines.phantoms.identity import invent
from pipelines.phantoms.scanner import Plane
from pipelines.phantoms.sites import SITES
from pipelines.predict.study import opened
from tests.tiny_kept import kept

ROOT = Path(__file__).parents[1]
SPACING = (5.0, 1.5, 1.5)  # slices, rows, columns, mm
SHAPE = (9, 72, 64)
LABELS = ("tumour-core", "oedema")
AXIAL = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]], float)  # columns: slice up, row to the back, column to the left (RAS)
CORONAL = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], float)
SAGITTAL = np.array([[1, 0, 0], [0, 0, -1], [0, -1, 0]], float)


@dataclass(frozen=True)
class Look:
    """How a study was acquired. `axes`: unit vectors of slice, row and column in columns (RAS); `contrast`: -1 inverts the images."""

    axes: np.ndarray = None
    spacing: tuple[float, float, float] = SPACING
    shape: tuple[int, int, int] = SHAPE
    contrast: float = 1.0
    noise: float = 0.04
    modalities: tuple[str, ...] = ("FLAIR", "T1w")
    outlined: bool = False
    lesion_mm: float = 14.0

    def plane(self, number: int) -> Plane:
        axes = AXIAL if self.axes is None else self.axes
        affine = np.eye(4)
        affine[:3, :3] = axes * np.array(self.spacing)
        middle = (np.array(self.shape) - 1) / 2
        affine[:3, 3] = np.random.default_rng(number).uniform(-9, 9, 3) - affine[:3, :3] @ middle
        return Plane(affine, self.shape, self.spacing[0])


def tilted(axes: np.ndarray, degrees: Sequence[float]) -> np.ndarray:
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ axes


def write_study(folder: Path, number: int, look: Look | None = None, site: str = "site-b") -> Path:
    """One patient's study. Equal arguments make equal files; `number` is the patient."""
    look = look or Look()
    place, rng = SITES[site], np.random.default_rng([7, number])
    exam = dicom.Exam(invent(place, number, 3, rng), place, folder)
    folder.mkdir(parents=True, exist_ok=True)
    plane = look.plane(number)
    tissue = tissues(plane, look, rng)
    values = {"FLAIR": (0, 400, 520, 900, 780), "T1w": (0, 500, 420, 260, 400), "T2w": (0, 300, 420, 700, 800)}
    files: list[Path] = []
    for position, modality in enumerate(look.modalities):
        level = np.array(values[modality], float)
        level[1:] = 600 + look.contrast * (level[1:] - 600)
        image = level[tissue] * (1 + look.noise * rng.standard_normal(plane.shape)) + 6 * np.abs(rng.standard_normal(plane.shape))
        series = replace(place.series[modality], description={"FLAIR": "AX FLAIR", "T1w": "AX T1", "T2w": "AX T2"}[modality])
        written = dicom.write_mr(exam, series, plane, np.maximum(image, 0), number=2 + position, contrast=False)
        files = written if modality == "FLAIR" else files
    if look.outlined:
        masks = np.stack([tissue == 4, np.zeros_like(tissue, bool), tissue == 3], axis=-1)  # necrosis stands for the whole core
        dicom.write_segmentation(exam, files, masks, number=500)
    return folder


def tissues(plane: Plane, look: Look, rng: np.random.Generator) -> np.ndarray:
    """0 air, 1 and 2 brain, 3 oedema, 4 core: an ellipsoid with folds, and a tumour somewhere inside."""
    index = np.stack(np.meshgrid(*(np.arange(size) for size in plane.shape), indexing="ij"), axis=-1)
    world = index @ plane.affine[:3, :3].T + plane.affine[:3, 3]
    centre = plane.affine[:3, :3] @ ((np.array(plane.shape) - 1) / 2) + plane.affine[:3, 3]
    offset = world - centre
    extent = np.abs(plane.affine[:3, :3]) @ (np.array(plane.shape) / 2) * 0.8
    head = ((offset / extent) ** 2).sum(axis=-1) < 1
    folds = np.sin(offset / 5.0).sum(axis=-1) > 0.4
    away = np.linalg.norm(offset - rng.uniform(-0.3, 0.3, 3) * extent, axis=-1)
    return np.where(~head, 0, np.where(away < 0.55 * look.lesion_mm, 4, np.where(away < look.lesion_mm, 3, 1 + folds)))


def settings(**quality: object) -> Params:
    """The project's params, with another section `service.quality`."""
    project = load_params()
    return project.model_copy(update={"service": project.service.model_copy(update={
        "quality": project.service.quality.model_copy(update=quality)})})


def case_in(folder: Path, params: Params, site: str = "site-b") -> Case:
    """A study as the stages make a case of it, in memory."""
    with opened(folder, params, site) as study:
        case = study.case
        return replace(case, images={name: case.image(name) for name in case.images}, brain=case.foreground().astype(np.uint8),
                       dseg=None if case.dseg is None else case.label())


def make_bundle(folder: Path) -> Path:
    """A model trained on four of eight tiny studies and what its site looks like, as a site's champion would lie there."""
    return Path(shutil.copytree(kept("bundle", _train) / "champion", folder))


def _train(work: Path) -> None:
    from pipelines.backbones import load_backbone
    from pipelines.prompts.bank import PromptBank
    from pipelines.prompts.vectors import write_vectors
    from pipelines.sites.typical import reference_of, with_tokens
    from pipelines.systems import params_model
    from pipelines.systems.protocol import Task
    from pipelines.train.one import Job, save_fit, train_one
    from pipelines.train.split import Split

    params, folder = settings(), work / "champion"
    backbone = load_backbone(f"atlas:{ROOT / 'models' / 'atlas'}")
    modalities = ("T1w", "FLAIR")
    phrasings = {modality: {name: {"site-b": [f"{name} on {modality}"]} for name in (*LABELS, "healthy", "outside")} for modality in modalities}
    texts = PromptBank(phrasings, {}).texts()
    (folder / "text").mkdir(parents=True)
    (folder / "text" / "prompts.json").write_text(json.dumps(phrasings))
    write_vectors(folder / "text", backbone.fingerprint, texts, backbone.encode_text(texts))
    task = Task(LABELS, modalities, PromptBank.load(folder / "text", folder / "text"), backbone)
    found = [with_tokens(case_in(write_study(work / str(number), number, Look(outlined=True)), params), task) for number in range(8)]
    split = Split(tuple(found[:4]), (found[4],), tuple(found[5:]), "site")
    chosen = params_model("linear-probe")().model_dump(mode="json")
    save_fit(train_one(Job("tiny", "linear-probe", chosen, 4, "site-b", 0, split, 8.0), task), folder / "fit")
    reference_of(found, task).save(folder / "fit")


def contents(out: Path) -> dict[str, bytes]:
    """What an answer's folder holds, times left out of the objects."""
    found = {}
    for path in sorted(out.iterdir()):
        found[path.name] = path.read_bytes()
        if path.suffix == ".dcm":
            dataset = pydicom.dcmread(path)
            kept = (element for element in dataset.iterall() if not element.keyword.endswith(("Date", "Time", "DateTime")))
            found[path.name] = dataset.PixelData + "".join(f"{element.tag}{element.repval}" for element in kept).encode()
    return found


def segmentation_in(out: Path) -> pydicom.Dataset:
    (path,) = out.glob("*_seg.dcm")
    return pydicom.dcmread(path)


def labels_of(resampled: Path) -> list[Case]:
    return cases_of(resampled)
