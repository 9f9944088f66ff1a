"""One study on the way to a model: ingested and resampled by the stages that made the cohorts, in a private folder that is gone afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cohort import Case, cases_of, read_manifest, read_quarantine
from pipelines.errors import DataError
from pipelines.ingest.dicom import plan_dicom
from pipelines.ingest.frames import Frame
from pipelines.ingest.headers import quiet
from pipelines.ingest.jobs import Candidate
from pipelines.ingest.pseudonyms import Pseudonyms, load_key
from pipelines.ingest.source import Files, kind_of, open_source
from pipelines.ingest.source.scratch import scratch_folder
from pipelines.ingest.stage import ingest
from pipelines.ingest.volumes import load_grid
from pipelines.params import Params, SiteRule
from pipelines.resample.grid import Grid, working_grid
from pipelines.resample.stage import resample_cohort

if TYPE_CHECKING:
    from pydicom import Dataset

NAME_LENGTH = 8


@dataclass(frozen=True)
class Study:
    """A study ready to be predicted, and where its answer goes. Its volumes live as long as the block of `opened`.

    Everything here but `datasets` and `uid` is pseudonymous.
    """

    case: Case
    working: Grid  # of the case, axes as in its files
    home: Grid  # of the reference image as it was ingested
    modality: str  # of the reference image
    frames: tuple[Frame, ...]  # of the reference series, in the order of its stack
    datasets: tuple[Dataset, ...]  # headers of the reference series' files, one a frame, or the one multi-frame object
    uid: str  # StudyInstanceUID
    pseudonyms: Pseudonyms
    refused: tuple[str, ...]  # what of the study could not be used, a sentence each

    @property
    def name(self) -> str:
        """How files and messages call it: subject and study by their pseudonyms."""
        return f"sub-{self.case.subject}_ses-{self.pseudonyms('study', self.uid, length=NAME_LENGTH)}"


@contextlib.contextmanager
def opened(source: Path, params: Params, site: str, key_file: Path | None = None) -> Iterator[Study]:
    """The one DICOM study in `source` (folder, zip or tar), as a case of `site`.

    Raises `UsageError` for a source or key that does not exist, and `DataError` where no study, several, or none that can be used is there.
    """
    params = params.model_copy(update={"cohort": params.cohort.model_copy(update={"site": SiteRule(constant=site)})})
    key = load_key(key_file, Path(params.cohort.pseudonym_key) if params.cohort.pseudonym_key else None, data=[source])
    with scratch_folder() as scratch, open_source(source, params.ingest.limits) as files:
        if not any(kind_of(file) == "dicom" for file in files):
            raise DataError(f"{source} holds no DICOM file; give the folder or archive of one study (a segmentation goes back to its slices)")
        bids, resampled = scratch / "bids", scratch / "resampled"
        print(f"predict: reading {len(files)} file(s)", flush=True)
        ingest(source, bids, params, key_file=key_file, jobs=1)
        resample_cohort(bids, resampled, params, jobs=1)
        yield _study(files, bids, resampled, params, Pseudonyms(key))


def _study(files: Files, bids: Path, resampled: Path, params: Params, pseudonyms: Pseudonyms) -> Study:
    cases = cases_of(resampled)
    if len(cases) != 1:
        raise DataError(f"the source holds {len(cases)} studies that can be used; give one at a time (a folder or archive for each)")
    images = read_manifest(resampled)
    working = Grid(*load_grid(resampled / images[images.kind == "mask"].path.iloc[0]))
    row, home = _reference(bids, working, params)
    candidate = _series(files, bids, row.path, params, pseudonyms)
    if candidate.part.stack is None:
        raise DataError(f"the reference series ({row.modality}) was repaired, so its slices are no longer those of the archive and a segmentation "
                        "cannot lie on them; send the repaired series to the archive and predict from that")
    frames = tuple(candidate.part.frames[index] for index in candidate.part.stack.order)
    if any(frame.tile is not None for frame in frames):
        raise DataError(f"the reference series ({row.modality}) is a mosaic, on whose tiles no segmentation can lie; convert it to an enhanced or "
                        "classic series first")
    return Study(cases[0], working, home, row.modality, frames, _datasets(candidate, frames), candidate.headers[0].text("StudyInstanceUID"),
                 pseudonyms, _refusals(bids, resampled))


def _reference(bids: Path, working: Grid, params: Params):
    """The manifest's row of the image that gave the working grid, and its own grid."""
    table = read_manifest(bids)
    for modality in params.resample.reference:
        for row in table[(table.kind == "image") & (table.modality == modality)].itertuples():
            home = Grid(*load_grid(bids / row.path))
            if working_grid(home, params.resample.in_plane_mm, params.resample.slice_mm)[0].same_as(working):
                return row, home
    raise DataError(f"none of the study's images ({', '.join(params.resample.reference)}) gives the grid that it was resampled to; check that the "
                    "files are not being changed meanwhile, and run again")


def _series(files: Files, bids: Path, path: str, params: Params, pseudonyms: Pseudonyms) -> Candidate:
    """The series that became the image at `path`: of the candidates the one that was not refused."""
    plan = plan_dicom([file for file in files if kind_of(file) == "dicom"], params, pseudonyms)
    refused = set(read_quarantine(bids).item)
    (job,) = [job for job in plan.images if job.path.as_posix() == path]
    (candidate,) = [candidate for candidate in job.candidates if candidate.item not in refused]
    return candidate


def _datasets(candidate: Candidate, frames: Sequence[Frame]) -> tuple[Dataset, ...]:
    """The headers of the files that the frames are in, each once."""
    import pydicom

    with quiet():
        numbers = dict.fromkeys(frame.file for frame in frames)
        return tuple(pydicom.dcmread(candidate.headers[number].file.path, stop_before_pixels=True, force=True) for number in numbers)


def _refusals(*folders: Path) -> tuple[str, ...]:
    rows = [row for folder in folders for row in read_quarantine(folder).itertuples()]
    return tuple(f"{row.item}: {row.reason}; {row.remedy}" for row in rows)
