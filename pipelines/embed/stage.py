"""Stage 4: the frozen backbone's tokens of every image and vectors of every text, computed once."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipelines.backbones import Backbone
from pipelines.cohort import QUARANTINE, read_manifest, write_quarantine
from pipelines.embed import size
from pipelines.embed.cache import Recipe, intact, remove_begun, write_index, writing
from pipelines.embed.folder import IMAGES, INDEX, lock, notes
from pipelines.embed.precision import FLOAT16
from pipelines.embed.remembered import Remembered
from pipelines.embed.texts import bank_texts, embed_texts
from pipelines.embed.work import Image, Job, Where, embed_images
from pipelines.errors import DataError
from pipelines.prompts.vectors import NAMES, TENSORS

#: What is remembered of a token file that was whole when it was last read.
CHECKSUM = "checksum"


@dataclass(frozen=True)
class Outcome:
    """What a run did, and what the cache of these images takes."""

    new: int
    reused: int
    refused: int
    new_texts: int
    seconds: float  # spent on the new images
    new_tokens: int
    bytes: int
    voxels: int  # of the images in the cache
    files: Mapping[str, str]  # everything that the cache of these images is made of, with its checksum

    def metrics(self) -> dict[str, float | int | None]:
        """The run as metrics.json has it; a rate that nothing was measured for is None."""
        counts = {name: getattr(self, name) for name in ("new", "reused", "refused", "new_texts")}
        per_voxel = self.bytes / self.voxels
        return counts | {"megabytes": round(self.bytes / 1e6, 3), "bytes_per_voxel": round(per_voxel, 3),
                         "times_float16_voxels": round(per_voxel / size.VOXEL_BYTES, 3),
                         "volumes_per_minute": round(60 * self.new / self.seconds, 1) if self.new else None,
                         "tokens_per_second": round(self.new_tokens / self.seconds) if self.new else None}


def embed(source: Path, prompts: Path, out: Path, backbone: Backbone, jobs: int = 1, *, dask: str | None = None,
          precision: str = FLOAT16, remembered: Remembered | None = None) -> Outcome:
    """Bring the cache in `out` up to the manifest of `source` and the prompts: valid entries stay, only new ones are computed.

    Images that cannot be read go to `quarantine.tsv`. The folder is kept between runs and locked while one writes, so that a second
    process waits and then finds everything done. `jobs` images at a time here, or as many as the cluster at `dask` takes. Files that
    `remembered` (by default the notes beside `out`) says were whole are not read again.
    """
    images = read_manifest(source).query("kind == 'image'")
    if images.empty:
        raise DataError(f"{Path(source) / 'manifest.tsv'} lists no image; look into its quarantine.tsv for the reasons")
    distinct = images.drop_duplicates(["sha256", "slice_axis"])
    if distinct.sha256.duplicated().any():
        raise DataError(f"{Path(source) / 'manifest.tsv'} lists one image with two slice axes; run the resample stage again")
    texts = bank_texts(prompts)
    source, out, recipe = Path(source).resolve(), Path(out).resolve(), Recipe(backbone.fingerprint, precision)
    with writing(out):
        (out / IMAGES).mkdir(parents=True, exist_ok=True)
    with lock(out):
        remove_begun(out)
        remembered = remembered or Remembered(notes(out))
        checksums = _valid(distinct, out, recipe, jobs, remembered)
        missing = distinct[~distinct.sha256.isin(checksums)]
        for warning in size.warnings(distinct, missing, backbone.levels, precision, out):
            print(f"warning: {warning}", file=sys.stderr)
        todo = [Image(row.subject, row.session, row.path, row.sha256, int(row.slice_axis)) for row in missing.itertuples()]
        refused, began = [], time.monotonic()
        for done in embed_images(todo, Job(source, out, recipe), backbone, Where(jobs, dask)) if todo else ():
            if isinstance(done, dict):
                refused.append(done)
            else:
                checksums[done[0]] = done[1]
        seconds = time.monotonic() - began
        if not checksums:
            raise DataError(f"none of the {len(images)} images of {source} could be embedded (first: {refused[0]['reason']}); "
                            "run the resample stage again")
        stored = images[images.sha256.isin(checksums)]
        with writing(out):
            new_texts = embed_texts(backbone, texts, out)
            rows = [_index_row(row, out, recipe, checksums) for row in stored.itertuples()]
            write_index(out, rows)
            write_quarantine(out, refused)
            files = {row["file"]: row["checksum"] for row in rows}
            for file, checksum in files.items():
                remembered.keep_of_file(out / file, CHECKSUM, checksum)
            files |= {name: remembered.sha256(out / name) for name in (INDEX, NAMES, TENSORS, QUARANTINE)}
            remembered.save()
    new = len(todo) - len(refused)
    embedded = missing[missing.sha256.isin(checksums)]
    return Outcome(new=new, reused=len(checksums) - new, refused=len(refused), new_texts=new_texts, seconds=seconds,
                   new_tokens=size.tokens(embedded, backbone.levels), bytes=sum({row["file"]: row["bytes"] for row in rows}.values()),
                   voxels=size.voxels(stored.drop_duplicates("sha256")), files=files)


def _valid(images: pd.DataFrame, out: Path, recipe: Recipe, jobs: int, remembered: Remembered) -> dict[str, str]:
    """Checksum of every image's tokens that are already there and whole; a damaged file is named and counts as missing."""
    import joblib

    paths = {row.sha256: out / recipe.file(row.sha256, int(row.slice_axis)) for row in images.itertuples()}
    paths = {digest: path for digest, path in paths.items() if path.is_file()}
    checksums = {digest: remembered.of_file(path, CHECKSUM) for digest, path in paths.items()}
    unseen = [digest for digest, checksum in checksums.items() if checksum is None]
    checksums |= zip(unseen, joblib.Parallel(n_jobs=jobs, prefer="threads")(joblib.delayed(intact)(paths[digest]) for digest in unseen), strict=True)
    for digest, path in paths.items():
        if not checksums[digest]:
            print(f"warning: {path} is damaged, it is embedded again", file=sys.stderr)
    return {digest: value for digest, value in checksums.items() if value}


def _index_row(row, out: Path, recipe: Recipe, checksums: Mapping[str, str]) -> dict[str, object]:
    file = recipe.file(row.sha256, int(row.slice_axis))
    return {"subject": row.subject, "session": row.session, "modality": row.modality, "sha256": row.sha256, "slice_axis": int(row.slice_axis),
            "fingerprint": recipe.fingerprint, "precision": recipe.precision, "file": file, "checksum": checksums[row.sha256],
            "bytes": (out / file).stat().st_size}
