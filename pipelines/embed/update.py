"""The stage as the command line runs it: nothing is loaded or read where nothing that the cache depends on has changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.embed.deferred import backbone_key, code_digest, deferred, digest_of
from pipelines.embed.folder import IMAGES, lock, notes
from pipelines.embed.remembered import Remembered
from pipelines.params import Embed

RUN = "run"


def update(source: Path, prompts: Path, out: Path, settings: Embed, labels: Sequence[str], *, dask: str | None = None,
           check_all: bool = False) -> dict[str, Any]:
    """Bring the cache in `out` up to date, and say what was done, what it takes, and what the backbone could reach at best.

    `labels` are the names of the label values 1, 2, ... of the cohort in `source`. `check_all` reads every file again, whatever is
    remembered of it.
    """
    source, out = Path(source).resolve(), Path(out).resolve()
    remembered = Remembered(notes(out), forget_files=check_all)
    backbone = backbone_key(settings.backbone, remembered)
    key = _run_key(source, Path(prompts), backbone, settings, labels)
    if key and (known := _as_before(out, key, remembered)):
        return known
    from pipelines.embed.ceiling import cohort_ceilings
    from pipelines.embed.stage import embed

    model = deferred(settings.backbone, backbone, remembered)
    outcome = embed(source, prompts, out, model, settings.jobs, dask=dask, precision=settings.precision, remembered=remembered)
    metrics = outcome.metrics() | {
        "backbone": settings.backbone, "fingerprint": model.fingerprint, "precision": settings.precision,
        "levels": {name: {"channels": channels, "stride": stride} for name, (channels, stride) in model.levels.items()},
        "patch_ceiling": cohort_ceilings(source, labels, model.levels)}
    if key and not outcome.refused:  # what was refused is tried again
        again = metrics | {"new": 0, "reused": outcome.new + outcome.reused, "new_texts": 0, "volumes_per_minute": None, "tokens_per_second": None}
        with lock(out):
            remembered.keep_of_key(RUN, key, {"metrics": again, "files": dict(outcome.files)})
            remembered.save()
    return metrics


def _run_key(source: Path, prompts: Path, backbone: str | None, settings: Embed, labels: Sequence[str]) -> str | None:
    """Everything that a run depends on, as hex; None where a part of it is not there or not known."""
    inputs = [source / "manifest.tsv", prompts / "prompts.json"]
    if backbone is None or not all(path.is_file() for path in inputs):
        return None
    code = code_digest("embed", "prompts", "cohort.py", "outputs.py")
    contents = [json.dumps(list(labels)), *(path.read_text() for path in inputs)]
    return digest_of([backbone, settings.backbone, settings.precision, code, contents])


def _as_before(out: Path, key: str, remembered: Remembered) -> dict[str, Any] | None:
    """What the last run said, where it was for the same `key` and none of the files it left has been touched since."""
    run = remembered.of_key(RUN, key)
    if run is None or not out.is_dir():
        return None
    with lock(out):
        for file, checksum in run["files"].items():
            what = "checksum" if file.startswith(IMAGES) else "sha256"
            if remembered.of_file(out / file, what) != checksum:
                return None
    return run["metrics"]
