"""The cohorts of the features benchmark: real images through the project's own ingest and resample stages, once, in a work folder."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml

from pipelines.cohort import MANIFEST, Case, cases_of, read_manifest
from pipelines.errors import DataError, UsageError
from pipelines.ingest.source import fingerprint, open_source
from pipelines.outputs import sha256, write_text
from pipelines.params import Params, load_params
from tasks.environment import PROJECT
from tasks.lay_out import CONF, compose, write_if_changed

if TYPE_CHECKING:
    import pandas as pd

#: Written last, with what the resampled cohort was made from.
STATE = "source.sha256"
PROGRESS_SECONDS = 10
Result = TypeVar("Result")


@dataclass(frozen=True)
class Cohort:
    """A resampled cohort. `folder` is its own in the work folder."""

    name: str
    folder: Path
    params: Params
    cases: tuple[Case, ...]
    manifest: pd.DataFrame

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that some case has, in the order of params."""
        present = {modality for case in self.cases for modality in case.images}
        return tuple(modality for modality in self.params.ingest.modalities if modality in present)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(sorted({case.site for case in self.cases}))

    @property
    def key(self) -> str:
        """What every feature depends on: the images and labels, by their checksums."""
        return sha256(self.folder / "resampled" / MANIFEST)


def prepare(name: str, work: Path) -> Cohort:
    """The cohort of conf/cohort/<name>.yaml, ingested and resampled below `work` unless that is done and neither source nor code has changed.

    Raises `UsageError` where there is no such file, or the folder of real images does not have it.
    """
    conf = Path(CONF) / f"{name}.yaml"
    if not (PROJECT / conf).is_file():
        raise UsageError(f"{conf} does not exist; give --cohorts names of files there")
    content = compose(name, conf, yaml.safe_load((PROJECT / conf).read_text()), PROJECT)
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "params.yaml"
    write_if_changed(file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    params = load_params(file)
    source = PROJECT / params.cohort.source
    state = _state(source, params)
    if not (folder / STATE).is_file() or (folder / STATE).read_text() != state:
        _stage("ingest", "--source", source, "--out", folder / "bids", "--params", file)
        _stage("resample", "--source", folder / "bids", "--out", folder / "resampled", "--params", file)
        write_text(folder / STATE, state)
    cases = tuple(case for case in cases_of(folder / "resampled") if case.dseg is not None)
    if not cases:
        raise DataError(f"{folder / 'resampled'} holds no case with a label; its quarantine.tsv says why")
    return Cohort(name, folder, params, cases, read_manifest(folder / "resampled"))


def watched(results: Iterable[Result], total: int, what: str) -> Iterator[Result]:
    """`results` as they come, with a line every few seconds on how many are done and how long the rest will take."""
    began = shown = time.monotonic()
    for count, result in enumerate(results, start=1):
        yield result
        now = time.monotonic()
        if now - shown > PROGRESS_SECONDS and count < total:
            shown = now
            print(f"  {what}: {count} of {total}, about {(now - began) / count * (total - count):.0f} s left", flush=True)


def _state(source: Path, params: Params) -> str:
    """Hash of the source's names, sizes and times, of the parameters and of the code that both stages run."""
    code = [path for stage in ("ingest", "resample") for path in sorted((PROJECT / "pipelines" / stage).rglob("*.py"))]
    with open_source(source, params.ingest.limits) as files:
        parts = [fingerprint(source, files), params.cohort.model_dump_json(), params.ingest.model_dump_json(), params.resample.model_dump_json(),
                 *(sha256(path) for path in code)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _stage(name: str, *words: object) -> None:
    """Run one stage by its command line. Raises `DataError` when it fails; what it said stands above."""
    if subprocess.run([sys.executable, "-m", f"pipelines.{name}", *map(str, words)], cwd=PROJECT, check=False).returncode:
        raise DataError(f"the {name} stage failed on {words[1]}; what it said stands above")
