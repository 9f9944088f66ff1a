"""What the embedding cache costs and saves, beside a plain loop over slices with the same model: `python -m benchmarks.embed_cache`.

Each run is a command of its own, in an order that turns with each repeat. The speed of cold runs and of the loop is taken inside the command,
without Python's start; that of warm runs is the whole command. Memory is the most that the command ever held, and processor time is given too, which
other work on the machine disturbs least. The loop reads, encodes slice by slice on all cores and saves, and does not check, hash or list anything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import cyclopts
import numpy as np
import yaml

from pipelines.cli import run
from pipelines.cohort import read_manifest, write_manifest
from pipelines.errors import DataError, UsageError
from pipelines.outputs import sha256, write_json
from pipelines.params import DEFAULT

LATER = ("warm", "one new image")  # after a cold run
app = cyclopts.App(name="python -m benchmarks.embed_cache")


@app.default
def main(*, source: Path | None = None, images: int = 20, size: tuple[int, int, int] = (256, 256, 24), backbone: str = "atlas:models/atlas",
         jobs: int = 2, repeats: int = 3, out: Annotated[Path | None, cyclopts.Parameter(name="--json")] = None) -> None:
    """Time a cold cache, a warm one, one new image, int8 storage and the plain loop on the same images.

    For example: `python -m benchmarks.embed_cache --source data/tcga-lgg/resampled --images 40`

    Parameters
    ----------
    source
        Folder of the resample stage; default: generated images.
    images
        How many images to embed; one more is the new one.
    size
        Of generated images, in voxels.
    backbone
        As embed.backbone in params.yaml names it.
    jobs
        Images at a time.
    repeats
        How often each is timed.
    out
        Where to write all numbers as JSON.
    """
    if source is not None and not source.is_dir():
        raise UsageError(f"{source} is no folder; give one that the resample stage wrote, or leave --source out")
    if images < 1 or repeats < 1:
        raise UsageError(f"{images} images {repeats} times are nothing to measure; give at least 1 of each")
    with tempfile.TemporaryDirectory(prefix="semiflow-embed-") as name:
        folder = Path(name)
        rows = _linked(source, images + 1, folder / "more") if source else _generated(images + 1, size, folder / "more")
        (folder / "prompts").mkdir()
        write_json(folder / "prompts" / "prompts.json", {"FLAIR": {"tumour": {"A": ["a tumour", "a normal brain"]}}})
        content = yaml.safe_load(DEFAULT.read_text())
        content["embed"] = {"backbone": backbone, "jobs": jobs}
        (folder / "params.yaml").write_text(yaml.safe_dump(content))
        results = _measured(folder, rows, backbone, repeats)
    _say(results, rows[:-1], _tokens(rows[:-1], backbone), repeats)
    if out is not None:
        write_json(out, results)


@app.command(show=False)
def loop(source: Path, backbone: str, out: Path, metrics: Path) -> None:
    """The plain loop, as a command of its own."""
    import nibabel
    import torch
    from safetensors.numpy import save_file

    from pipelines.backbones import load_backbone

    model, manifest = load_backbone(backbone), read_manifest(source)
    model.precision = torch.float32  # as torch computes unless told otherwise
    out.mkdir()
    start = time.perf_counter()
    for number, row in enumerate(manifest.itertuples()):
        image = nibabel.load(source / row.path)
        volume = np.moveaxis(np.asarray(image.dataobj, np.float32), int(row.slice_axis), 0)
        slices = [model.encode_image(volume[index:index + 1], image.header.get_zooms()[:3]) for index in range(len(volume))]
        save_file({name: np.concatenate([one[name] for one in slices]) for name in slices[0]}, out / f"{number}.safetensors")
    write_json(metrics, {"volumes_per_minute": 60 * len(manifest) / (time.perf_counter() - start)})


def _measured(folder: Path, rows: Sequence[dict], backbone: str, repeats: int) -> dict[str, list[dict]]:
    """Numbers of every run, by what was run."""
    base = folder / "more"
    fewer = folder / "images"  # all but the last, over the same files
    fewer.mkdir()
    for entry in base.iterdir():
        (fewer / entry.name).symlink_to(entry)
    (fewer / "manifest.tsv").unlink()
    write_manifest(fewer, rows[:-1])
    cache, metrics = folder / "cache", folder / "metrics.json"
    common = ["-m", "pipelines.embed", "--prompts", folder / "prompts", "--params", folder / "params.yaml", "--metrics", metrics]
    kinds = {"plain loop": ["-m", "benchmarks.embed_cache", "loop", fewer, backbone, folder / "loop", metrics],
             "cold": [*common, "--source", fewer, "--out", cache],
             "cold, int8": [*common, "--source", fewer, "--out", folder / "int8", "--precision", "int8"]}
    after_cold = dict(zip(LATER, ([*common, "--source", which, "--out", cache] for which in (fewer, base)), strict=True))
    results: dict[str, list[dict]] = {name: [] for name in [*kinds, *after_cold]}
    for repeat in range(repeats):
        turn = repeat % len(kinds)
        for name in [*list(kinds)[turn:], *list(kinds)[:turn]]:
            results[name].append(_timed(name, kinds[name], metrics))
            if name == "cold":
                for later, words in after_cold.items():
                    results[later].append(_timed(later, words, metrics))
        for written in ("cache", "int8", "loop"):
            shutil.rmtree(folder / written)
    return results


def _timed(name: str, words: Sequence[object], metrics: Path) -> dict:
    """What a command wrote to `metrics`, its wall-clock and processor seconds and the most resident memory it held, in MB."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise DataError(f"{name} failed with exit status {process.returncode}; what it said stands above")
    return json.loads(metrics.read_text()) | {
        "wall_s": time.perf_counter() - start, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}


def _say(results: dict[str, list[dict]], rows: Sequence[dict], tokens: float, repeats: int) -> None:
    voxels = np.mean([np.prod([int(length) for length in row["shape"].split("x")]) for row in rows])
    print(f"{len(rows)} images of {voxels / 1e6:.2f} million voxels and {tokens / 1e6:.2f} million tokens on average; medians of {repeats}")
    plain = _middle(results["plain loop"], "volumes_per_minute")
    for name, runs in results.items():
        wall, processor, peak = (_middle(runs, each) for each in ("wall_s", "cpu_s", "peak_mb"))
        said = f"  {name:14} {wall:6.1f} s in all, {processor:6.1f} s of processor, peak {peak:6.0f} MB"
        if "bytes_per_voxel" in runs[0]:
            said += f", {runs[0]['new']:3} new, {runs[0]['reused']:3} reused, {runs[0]['bytes_per_voxel']:5.2f} bytes per voxel"
        if name in LATER:
            times = (_middle(results["cold"], clock) / _middle(runs, clock) for clock in ("wall_s", "cpu_s"))
            said += ", {:.0f} times faster than cold by the clock, {:.0f} times by processor time".format(*times)
        else:
            speed = _middle(runs, "volumes_per_minute")
            said += f", {speed:6.1f} volumes/min, {speed / 60 * tokens:9.3g} tokens/s, {speed / plain:4.2f} times the loop"
        print(said)


def _middle(runs: Sequence[dict], name: str) -> float:
    return median(run[name] for run in runs)


def _tokens(rows: Sequence[dict], backbone: str) -> float:
    """Tokens of an image on average, over all levels."""
    from pipelines.backbones import load_backbone

    levels, counts = load_backbone(backbone).levels.values(), []
    for row in rows:
        shape = [int(length) for length in row["shape"].split("x")]
        slices = shape.pop(row["slice_axis"])
        counts.append(slices * sum(-(-shape[0] // stride) * -(-shape[1] // stride) for _, stride in levels))
    return float(np.mean(counts))


def _row(path: str, digest: str, shape: str, axis: int, number: int) -> dict:
    return {"subject": f"{number:04d}", "session": "", "site": "A", "kind": "image", "modality": "FLAIR", "path": path, "sha256": digest,
            "shape": shape, "spacing_mm": "1x1x5", "slice_axis": axis}


def _linked(source: Path, count: int, folder: Path) -> list[dict]:
    """The first `count` distinct images of a cohort under a manifest of their own."""
    found = read_manifest(source).query("kind == 'image'").drop_duplicates("sha256").head(count)
    if len(found) < count:
        raise UsageError(f"{source} has {len(found)} distinct images; give --images {len(found) - 1} or fewer")
    folder.mkdir()
    rows = []
    for number, row in enumerate(found.itertuples()):
        name = f"{number:04d}.nii.gz"
        (folder / name).symlink_to((source / row.path).resolve())
        rows.append(_row(name, row.sha256, row.shape, int(row.slice_axis), number))
    write_manifest(folder, rows)
    return rows


def _generated(count: int, size: tuple[int, int, int], folder: Path) -> list[dict]:
    import nibabel

    folder.mkdir()
    random, rows = np.random.default_rng(0), []
    for number in range(count):
        name = f"{number:04d}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(random.standard_normal(size).astype(np.float32), np.eye(4)), folder / name)
        rows.append(_row(name, sha256(folder / name), "x".join(map(str, size)), 2, number))
    write_manifest(folder, rows)
    return rows


if __name__ == "__main__":
    run(app)
