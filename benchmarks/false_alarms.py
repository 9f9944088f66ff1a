"""Is any undamaged series refused, or read wrongly? `python -m benchmarks.false_alarms --count 1000`."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import cyclopts
import numpy as np

from benchmarks.random_series import classic, write
from pipelines.cli import run

PLACE_TOL_MM = 0.1  # headers with two decimals place a voxel this well at best

app = cyclopts.App(name="python -m benchmarks.false_alarms")


@app.default
def main(*, count: int = 1000, seed: int = 0) -> None:
    """Convert COUNT undamaged random series. Exit status 1 when one is refused, or is not the volume it was made of.

    Parameters
    ----------
    count
        How many series: MR and CT in any orientation, spacings 0.2 to 8 mm with 2 to 10 decimals, any order of slices and files, 9 to 16 bits,
        rescaled by none, one or many slopes.
    seed
        Of the random numbers.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="semiflow-alarms-") as folder:
        found = refusals(np.random.default_rng(seed), Path(folder), count)
    taken = time.perf_counter() - start
    print(f"{count} undamaged series, {len(found)} false alarms {dict(Counter(found)) or ''}in {taken:.0f} s")
    if found:
        sys.exit(1)


def refusals(rng: np.random.Generator, folder: Path, count: int) -> list[str]:
    """The codes of refused series, and 'wrong-volume' for each that was read as something else."""
    found = []
    for number in range(count):
        place = folder / str(number)
        place.mkdir()
        found += _refusals_of_one(rng, place)
        shutil.rmtree(place)
    return found


def _refusals_of_one(rng: np.random.Generator, folder: Path) -> list[str]:
    from pipelines.errors import Refused
    from pipelines.ingest.convert import convert
    from pipelines.ingest.source import SourceFile
    from pipelines.ingest.volumes import canonical

    datasets, values, affine = classic(rng)
    write(datasets, folder)
    results = [one.result for one in convert([SourceFile(path, (path.name,)) for path in sorted(folder.iterdir())])]
    if codes := [result.code for result in results if isinstance(result, Refused)]:
        return codes
    truth = canonical(values, affine, 0)
    return [] if len(results) == 1 and _same(results[0], truth) else ["wrong-volume"]


def _same(volume, truth) -> bool:
    """Whether two volumes of the same voxels have them at the same places; a rotation of 45 degrees has two closest axis orders."""
    index = np.linalg.inv(volume.affine) @ truth.affine
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*(np.array(truth.array.shape) - 1), 1]
    there = (corners @ index.T)[:, :3]
    if not np.allclose((there - np.rint(there)) * volume.spacing, 0, atol=PLACE_TOL_MM):
        return False
    every = np.indices(truth.array.shape).reshape(3, -1)
    places = np.rint(index[:3, :3] @ every + index[:3, 3:]).astype(int)
    if (places < 0).any() or (places.max(axis=1) >= volume.array.shape).any() or volume.array.size != truth.array.size:
        return False
    return bool(np.allclose(volume.array[tuple(places)], truth.array[tuple(every)], rtol=1e-6, atol=1e-6))


if __name__ == "__main__":
    run(app)
