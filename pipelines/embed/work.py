"""Embedding many images at once: on threads here, or on the workers of a Dask cluster. The numbers do not depend on which."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.embed.cache import Recipe, write_tokens, writing
from pipelines.embed.precision import pack
from pipelines.errors import DataError, UsageError
from pipelines.outputs import sha256
from pipelines.threads import one_thread

if TYPE_CHECKING:
    from pipelines.backbones import Backbone

PROGRESS_SECONDS = 10
CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Image:
    """One image to embed."""

    subject: str
    session: str
    path: str  # in the source folder
    sha256: str
    slice_axis: int


@dataclass(frozen=True)
class Job:
    """What every image of a run is embedded with, from and to."""

    source: Path
    out: Path
    recipe: Recipe


@dataclass(frozen=True)
class Where:
    """Who computes: `jobs` threads of this process, or the workers of the Dask cluster whose scheduler listens at `dask`."""

    jobs: int = 1
    dask: str | None = None


Result = tuple[str, str] | dict[str, str]


def embed_images(images: Sequence[Image], job: Job, backbone: Backbone, where: Where) -> Iterator[Result]:
    """(sha256, checksum) of each image embedded, or the quarantine row of one that could not be, in any order. One thread an image."""
    shown = began = time.monotonic()
    results = _on_threads(images, job, backbone, where.jobs) if where.dask is None else _on_cluster(images, job, backbone, where.dask)
    for count, result in enumerate(results, start=1):
        if time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            print(f"embedded {count} of {len(images)} images, {(shown - began) / count * (len(images) - count):.0f} s left", flush=True)
        yield result


def embed_image(image: Image, job: Job, backbone: Backbone) -> Result:
    """Read, encode and store one image, on one thread, because sums in another order differ in the last bit."""
    import torch

    torch.set_num_threads(1)
    path = job.source / image.path
    item = {"subject": image.subject, "session": image.session, "item": image.path, "remedy": "run the resample stage again"}
    try:
        if sha256(path) != image.sha256:
            return item | {"code": "changed", "reason": "the file's bytes are not those that the manifest lists"}
        volume, spacing = _volume(path, image.slice_axis)
    except Exception as error:  # whatever a damaged file makes a reader raise
        return item | {"code": "unreadable", "reason": f"the image cannot be read ({type(error).__name__})"}
    with np.errstate(over="ignore"):  # it is refused below
        tokens = {name: np.asarray(values, np.float16) for name, values in backbone.encode_image(volume, spacing).items()}
    if bad := sum(int((~np.isfinite(values)).sum()) for values in tokens.values()):
        return item | {"code": "not-finite", "reason": f"{bad} numbers of its tokens are infinite or undefined in float16",
                       "remedy": "look for infinite or extreme intensities in the image; the resample stage should make them about 0 +- 1"}
    return image.sha256, write_tokens(job.out / job.recipe.file(image.sha256, image.slice_axis), pack(tokens, job.recipe.precision))


def _volume(path: Path, slice_axis: int) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Intensities `(S, H, W)` float32 and their spacing in mm."""
    import nibabel

    image = nibabel.load(path)
    spacing = [float(value) for value in image.header.get_zooms()[:3]]
    spacing.insert(0, spacing.pop(slice_axis))
    return np.ascontiguousarray(np.moveaxis(np.asarray(image.dataobj, dtype=np.float32), slice_axis, 0)), tuple(spacing)


def _on_threads(images: Sequence[Image], job: Job, backbone: Backbone, jobs: int) -> Iterator[Result]:
    import joblib

    with one_thread():
        yield from joblib.Parallel(n_jobs=jobs, prefer="threads", return_as="generator")(
            joblib.delayed(embed_image)(image, job, backbone) for image in images)


def _on_cluster(images: Sequence[Image], job: Job, backbone: Backbone, address: str) -> Iterator[Result]:
    """Not by joblib's Dask backend: with one worker of one thread (say, one GPU) that computes here instead."""
    with _client(address) as client:
        _check_folders(client, address, job)
        from distributed import CancelledError, KilledWorker, as_completed

        model = client.scatter(backbone, broadcast=True)  # travels once to each worker
        futures = client.map(embed_image, images, job=job, backbone=model, pure=False)
        try:
            for future in as_completed(futures, loop=client.loop):
                yield future.result()
        except (KilledWorker, CancelledError):  # cancelled: with the last worker the backbone is gone too
            raise DataError(f"workers of {address} died at their work (out of memory?); give them more memory and run again, "
                            "what is finished is kept") from None


@contextlib.contextmanager
def _client(address: str) -> Iterator:
    try:
        from distributed import Client
    except ImportError:
        raise UsageError(f"--dask is {address}, but 'distributed' is not installed; pip install distributed, or leave --dask out") from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError, ImportError):
        raise UsageError(f"no Dask scheduler answers at {address}; start one (dask scheduler), or leave --dask out") from None
    with client:
        yield client


def _check_folders(client, address: str, job: Job) -> None:
    """Every worker has to see the folders under the same names: images are read and tokens are written there."""
    probe = job.out / ".0.probe"  # a name that the next writer clears, should this one be killed here
    with writing(probe):
        probe.touch()
    try:
        seen = client.run(_sees, [probe, job.source])
    finally:
        probe.unlink(missing_ok=True)
    if not seen:
        raise UsageError(f"the Dask cluster at {address} has no worker; start some (dask worker {address})")
    if blind := sum(not each for each in seen.values()):
        raise DataError(f"{blind} of {len(seen)} workers of {address} do not see {job.source} and {job.out}; share both folders with them")


def _sees(paths: Sequence[Path]) -> bool:
    return all(path.exists() for path in paths)
