"""How fast the ingest is, beside dcm2niix and dicom2nifti on the same files: `python -m benchmarks.ingest_speed SOURCE ...`.

All tools run as commands of their own, one after the other, in an order that turns with each repeat, so that neither the disk's cache nor a busy
minute favours one. They do not do the same: the ingest also de-identifies, checks each series, reads labels, hashes and writes a manifest.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import cyclopts
import numpy as np
import psutil

from pipelines.cli import run
from pipelines.errors import DataError, UsageError
from pipelines.outputs import write_json

KEY = b"a key for measurements only"
POLL_S = 0.05
SLICES, MATRIX = 50, 128  # of each generated series
CONTRASTS = ("t1 se tra", "t1 se tra KM", "t2 tse tra", "flair tra")
DICOM2NIFTI = "import sys, dicom2nifti; dicom2nifti.convert_directory(sys.argv[1], sys.argv[2], compression=True, reorient=False)"

Sizes = Annotated[tuple[int, ...], cyclopts.Parameter(consume_multiple=True)]
app = cyclopts.App(name="python -m benchmarks.ingest_speed")


@dataclass(frozen=True)
class Tool:
    """One way to convert: `command(source, out)`."""

    name: str
    command: Callable[[Path, Path], list[str]]


@app.default
def main(*sources: Path, repeats: int = 5, jobs: int = 2, files: Sizes = (1000, 5000, 20000), dicom2nifti: Path | None = None,
         out: Annotated[Path | None, cyclopts.Parameter(name="--json")] = None) -> None:
    """Time the ingest and others on SOURCES, then the ingest alone on generated studies of growing size, with its peak memory.

    For example: `python -m benchmarks.ingest_speed data/phantom/dicom/site-a PGBM-001 --dicom2nifti other/.venv/bin/python`

    Parameters
    ----------
    sources
        Folders of DICOM.
    repeats
        How often each tool converts each source.
    jobs
        Processes of the ingest.
    files
        Sizes of the generated studies, in files; --empty-files leaves that part out.
    dicom2nifti
        A Python that has dicom2nifti installed, in an environment of its own, because it is no dependency of this project.
    out
        Where to write all times as JSON.
    """
    if missing := [source for source in sources if not source.is_dir()]:
        raise UsageError(f"{missing[0]} is no folder; give unpacked folders of DICOM")
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="semiflow-speed-") as name:
        folder = Path(name)
        (folder / "key").write_bytes(KEY)
        found = tools(folder / "key", jobs, dicom2nifti)
        for source in sources:
            results[source.name] = _race(source, found, repeats, folder)
        if files:
            results["growing"] = _grow(files, found[0], folder)
    if out is not None:
        write_json(out, results)


def tools(key: Path, jobs: int, dicom2nifti: Path | None) -> list[Tool]:
    """The ingest first, then what else is installed here; what is not is said."""
    ingest = [sys.executable, "-m", "pipelines.ingest", "--site", "here", "--key", str(key), "--jobs", str(jobs)]
    found = [Tool("ingest", lambda source, out: [*ingest, "--source", str(source), "--out", str(out)])]
    try:
        import dcm2niix
    except ImportError:
        print("dcm2niix left out: its wheel is not installed (pip install dcm2niix)")
    else:
        for packed in "yn":
            found.append(Tool(f"dcm2niix -z {packed}", lambda source, out, packed=packed: [
                str(dcm2niix.bin), "-g", "i", "-z", packed, "-f", "%j", "-o", str(out), str(source)]))
    if dicom2nifti is None:
        print("dicom2nifti left out: no --dicom2nifti was given")
    else:
        found.append(Tool("dicom2nifti", lambda source, out: [str(dicom2nifti), "-c", DICOM2NIFTI, str(source), str(out)]))
    return found


def _race(source: Path, found: Sequence[Tool], repeats: int, folder: Path) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {tool.name: [] for tool in found}
    for repeat in range(repeats):
        turn = repeat % len(found)
        for tool in [*found[turn:], *found[:turn]]:
            times[tool.name].append(timed(tool, source, folder)[0])
    count = sum(path.is_file() for path in source.rglob("*"))
    print(f"\n{source.name}: {count} files, {repeats} repeats")
    for name, taken in times.items():
        ratio = median(times[found[0].name]) / median(taken)
        print(f"  {name:14} median {median(taken):7.2f} s   min {min(taken):7.2f} s   ingest takes {ratio:5.2f} times as long")
    return times


def timed(tool: Tool, source: Path, folder: Path) -> tuple[float, int]:
    """Wall-clock seconds of one run, and the peak of its processes' resident memory together, in bytes. Raises `DataError` when it fails."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        out = Path(work, "out")
        if tool.name != "ingest":
            out.mkdir()
        start, peak = time.perf_counter(), 0
        process = subprocess.Popen(tool.command(source, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # they print names of patients
        while True:
            try:
                process.wait(POLL_S)
                break
            except subprocess.TimeoutExpired:
                peak = max(peak, memory(process.pid))
        taken = time.perf_counter() - start
        if process.returncode and tool.name == "ingest":
            raise DataError(f"{tool.name} failed on {source} with exit status {process.returncode}; run it by hand to see why")
    return taken, peak


def memory(pid: int) -> int:
    """Resident memory of a process and its children, summed; pages that they share count for each."""
    try:
        process = psutil.Process(pid)
        return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])
    except psutil.NoSuchProcess:
        return 0


def _grow(sizes: Sequence[int], tool: Tool, folder: Path) -> dict[str, dict[str, float]]:
    print(f"\ngenerated studies: {len(CONTRASTS)} series of {SLICES} slices of {MATRIX} x {MATRIX} for each patient")
    results = {}
    for count in sizes:
        source = folder / f"study-{count}"
        generate(source, count)
        taken, peak = timed(tool, source, folder)
        print(f"  {count:6} files {taken:7.1f} s   {1000 * taken / count:6.2f} ms/file   peak {peak / 1e9:.2f} GB")
        results[str(count)] = {"seconds": taken, "peak_gb": peak / 1e9}
    return results


def generate(folder: Path, count: int) -> None:
    """Write `count` files: whole patients of four MR series. Fast, because one file is a template whose fields of fixed length are replaced."""
    folder.mkdir(parents=True)
    template, pixels = _template(), np.random.default_rng(0).integers(0, 1000, (2 * MATRIX, MATRIX), dtype="<i2")
    per_patient = SLICES * len(CONTRASTS)
    for number in range(count):
        patient, rest = divmod(number, per_patient)
        series, index = divmod(rest, SLICES)
        values = {b"P" * 8: f"1{patient:07d}", b"S" * 8: f"1{patient:05d}{series:02d}", b"I" * 8: f"1{number:07d}", b"Z" * 8: f"{index * 3.0:8.2f}",
                  b"N" * 8: f"{index + 1:8d}", b"D" * 16: f"{CONTRASTS[series]:16}"}
        start = template
        for word, value in values.items():
            start = start.replace(word, value.encode())
        shift = (number * 7) % MATRIX
        (folder / f"{number:06d}").write_bytes(start + pixels[shift:shift + MATRIX].tobytes())


def _template() -> bytes:
    """An MR image up to its pixels, with words of capital letters where each file has values of its own."""
    import io

    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "2.25.3." + "1" * 8
    ds.SOPClassUID, ds.Modality, ds.ImageType = MRImageStorage, "MR", ["ORIGINAL", "PRIMARY", "M"]
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "2.25.1." + "2" * 8, "2.25.2." + "3" * 8, "2.25.4." + "2" * 8
    ds.PatientID, ds.PatientName, ds.StudyDate, ds.StudyTime = "P" * 8, "P" * 8, "20200101", "120000"
    ds.Manufacturer, ds.ManufacturerModelName, ds.PatientPosition = "SIEMENS", "Avanto", "HFS"
    ds.SeriesDescription, ds.SeriesNumber, ds.SliceThickness = "D" * 16, 1, 3
    ds.ImageOrientationPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
    ds.ImagePositionPatient, ds.InstanceNumber = ["-64", "-64", "77777777"], "88888888"
    ds.Rows = ds.Columns = MATRIX
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.PixelData = bytes(2 * MATRIX * MATRIX)
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    start = buffer.getvalue()[:-2 * MATRIX * MATRIX]
    for digits, word in ((b"77777777", b"Z"), (b"88888888", b"N"), (b"11111111", b"I"), (b"22222222", b"P"), (b"33333333", b"S")):
        start = start.replace(digits, word * 8)
    return start


if __name__ == "__main__":
    run(app)
