"""Stage 4: the frozen backbone's tokens of every image and vectors of every text, computed once."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.backbones import Backbone
from pipelines.cohort import read_manifest, write_quarantine
from pipelines.embed.cache import IMAGES, intact, token_path, write_index, write_tokens
from pipelines.embed.texts import bank_texts, embed_texts
from pipelines.errors import DataError
from pipelines.outputs import locked, sha256

PROGRESS_SECONDS = 10


@dataclass(frozen=True)
class Outcome:
    """What a run did."""

    new: int
    reused: int
    refused: int
    new_texts: int


def embed(source: Path, prompts: Path, out: Path, backbone: Backbone, jobs: int = 1) -> Outcome:
    """Bring the cache in `out` up to the manifest of `source` and the prompts: valid entries stay, only new ones are computed.

    Images that cannot be read go to `quarantine.tsv`. The folder is kept between runs and locked while one writes.
    """
    images = read_manifest(source).query("kind == 'image'")
    if images.empty:
        raise DataError(f"{Path(source) / 'manifest.tsv'} lists no image; look into its quarantine.tsv for the reasons")
    texts = bank_texts(prompts)
    out = Path(out)
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    with locked(out.parent / f".{out.name}.lock"):
        for left in [*out.glob(".[0-9]*"), *(out / IMAGES).glob(".[0-9]*")]:
            left.unlink()  # what a killed writer had begun
        checksums = _valid(images, out, backbone.fingerprint)
        todo = [row for row in images.drop_duplicates("sha256").itertuples() if row.sha256 not in checksums]
        refused = []
        for done in _computed(todo, Path(source), out, backbone, jobs):
            if isinstance(done, dict):
                refused.append(done)
            else:
                checksums[done[0]] = done[1]
        if not checksums:
            raise DataError(f"none of the {len(images)} images of {source} could be embedded (first: {refused[0]['reason']}); "
                            "run the resample stage again")
        new_texts = embed_texts(backbone, texts, out)
        write_index(out, [_index_row(row, out, backbone.fingerprint, checksums) for row in images.itertuples() if row.sha256 in checksums])
        write_quarantine(out, refused)
    new = len(todo) - len(refused)
    return Outcome(new=new, reused=len(checksums) - new, refused=len(refused), new_texts=new_texts)


def _valid(images: pd.DataFrame, out: Path, fingerprint: str) -> dict[str, str]:
    """Checksum of every image's tokens that are already there and whole; a damaged file is named and counts as missing."""
    checksums = {}
    for digest in images.sha256.unique():
        path = token_path(out, digest, fingerprint)
        if path.is_file():
            found = intact(path)
            if found:
                checksums[digest] = found
            else:
                print(f"warning: {path} is damaged, it is embedded again", file=sys.stderr)
    return checksums


def _computed(rows: list, source: Path, out: Path, backbone: Backbone, jobs: int) -> Iterator[tuple[str, str] | dict[str, str]]:
    """(sha256, checksum) of each image embedded, or the quarantine row of one that could not be.

    One thread per image and `jobs` images at a time, so that the numbers do not depend on `jobs`.
    """
    import joblib
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        shown = began = time.monotonic()
        work = joblib.Parallel(n_jobs=jobs, prefer="threads", return_as="generator")(joblib.delayed(_one)(row, source, out, backbone) for row in rows)
        for count, result in enumerate(work, start=1):
            if time.monotonic() - shown > PROGRESS_SECONDS:
                shown = time.monotonic()
                print(f"embedded {count} of {len(rows)} images, {(shown - began) / count * (len(rows) - count):.0f} s left", flush=True)
            yield result
    finally:
        torch.set_num_threads(threads)


def _one(row, source: Path, out: Path, backbone: Backbone) -> tuple[str, str] | dict[str, str]:
    path = source / row.path
    item = {"subject": row.subject, "session": row.session, "item": row.path, "remedy": "run the resample stage again"}
    try:
        if sha256(path) != row.sha256:
            return item | {"code": "changed", "reason": "the file's bytes are not those that the manifest lists"}
        volume, spacing = _volume(path, int(row.slice_axis))
    except Exception as error:  # whatever a damaged file makes a reader raise
        return item | {"code": "unreadable", "reason": f"the image cannot be read ({type(error).__name__})"}
    return row.sha256, write_tokens(token_path(out, row.sha256, backbone.fingerprint), backbone.encode_image(volume, spacing))


def _volume(path: Path, slice_axis: int) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Intensities `(S, H, W)` float32 and their spacing in mm."""
    import nibabel

    image = nibabel.load(path)
    spacing = [float(value) for value in image.header.get_zooms()[:3]]
    spacing.insert(0, spacing.pop(slice_axis))
    return np.ascontiguousarray(np.moveaxis(np.asarray(image.dataobj, dtype=np.float32), slice_axis, 0)), tuple(spacing)


def _index_row(row, out: Path, fingerprint: str, checksums: dict[str, str]) -> dict[str, object]:
    path = token_path(out, row.sha256, fingerprint)
    return {"subject": row.subject, "session": row.session, "modality": row.modality, "sha256": row.sha256, "fingerprint": fingerprint,
            "file": path.relative_to(out).as_posix(), "checksum": checksums[row.sha256], "bytes": path.stat().st_size}
