"""`python -m tasks.pacs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cyclopts

from pipelines.cli import run
from tasks.pacs.retrieve import Change, Watcher

app = cyclopts.App(name="python -m tasks.pacs", help_format="markdown", help="""
Fetch studies from a PACS, by DICOMweb or DIMSE, into a private inbox for the ingest stage, and send results back.

A PACS is described by a file like conf/pacs/example.yaml; passwords stay in environment variables or files of their own, which it names.

For example: `python -m tasks.pacs echo --pacs conf/pacs/mine.yaml`, then `find`, then
`python -m tasks.pacs retrieve --pacs conf/pacs/mine.yaml --out data/mine/inbox`,
then `python -m pipelines.ingest --source data/mine/inbox --out data/mine/bids`
""")


@app.command
def echo(*, pacs: Path) -> None:
    """Ask the PACS whether it answers and accepts us: address, certificates, AE titles or credentials.

    Parameters
    ----------
    pacs
        The PACS: a file like conf/pacs/example.yaml.
    """
    from tasks.pacs.archive import open_archive
    from tasks.pacs.config import load_pacs

    config = load_pacs(pacs)
    with open_archive(config) as archive:
        archive.echo()
    print(f"the PACS {config.address} answers")


@app.command
def find(*, pacs: Path, key: Path | None = None) -> None:
    """List the studies that the query of the file matches, by their keyed names and numbers of instances. Fetches nothing.

    Parameters
    ----------
    pacs
        The PACS: a file like conf/pacs/example.yaml.
    key
        File with the key of the names (at least 16 bytes), instead of `$SEMIFLOW_KEY_FILE` or your own.
    """
    from pipelines.ingest.pseudonyms import Pseudonyms, load_key
    from tasks.pacs.archive import open_archive, patiently
    from tasks.pacs.config import load_pacs
    from tasks.pacs.inbox import keyed_name

    config, pseudonyms = load_pacs(pacs), Pseudonyms(load_key(key))
    with open_archive(config) as archive:
        studies = patiently(config.retries, archive.find_studies, config.query)
    for study in studies:
        print(f"{keyed_name(pseudonyms, 'study', study.uid)}\t{'?' if study.instances is None else study.instances} instance(s)")
    print(f"{len(studies)} studies, {sum(study.instances or 0 for study in studies)} instances")


@app.command
def retrieve(*, pacs: Path, out: Path, identified: bool = False, key: Path | None = None, params: Path | None = None, thorough: bool = False,
             retry_refused: bool = False) -> None:
    """Fetch the studies that the query of the file matches, each instance once.

    The inbox has folders `<study>/<series>` with files `<instance>.dcm`, all keyed names. A study appears when it is whole: when two looks find the
    same instances, as many as the PACS counts, and all of them are here. Kill it whenever you like and run it again: it goes on where it was.
    An instance that cannot be de-identified goes to `quarantine.tsv` with the reason.

    Parameters
    ----------
    pacs
        The PACS: a file like conf/pacs/example.yaml.
    out
        The inbox, a folder only you can read. Made at the first run.
    identified
        Keep the data sets as the PACS sends them, with all that identifies a patient (to send results back), instead of de-identifying them.
    key
        File with the key of the names (at least 16 bytes), instead of params `cohort.pseudonym_key`, `$SEMIFLOW_KEY_FILE` or your own.
    params
        A params.yaml, for `ingest.deidentify`; the project's own if not given.
    thorough
        Read every file of the inbox again and compare its checksum, not only its size and time.
    retry_refused
        Fetch the instances of quarantine.tsv again.
    """
    from pipelines.ingest.pseudonyms import Pseudonyms, load_key
    from pipelines.params import load_params
    from tasks.pacs import retrieve as retrieval
    from tasks.pacs.config import load_pacs

    config, settings = load_pacs(pacs), load_params(params)
    cohort_key = Path(settings.cohort.pseudonym_key) if settings.cohort.pseudonym_key else None
    pseudonyms = Pseudonyms(load_key(key, cohort_key))
    change, content = _as_sent() if identified else deidentified(settings, pseudonyms)
    with _progress() as watcher:
        summary = retrieval.retrieve(config, out, pseudonyms, change, content=content, watcher=watcher, thorough=thorough,
                                     retry_refused=retry_refused)
    print(summary)


@app.command(name="store")
def store_back(*results: Path, pacs: Path) -> None:
    """Send DICOM files to the PACS that their study came from, and see that it has them. What it has already is not sent again.

    For example: `python -m flows.predict study.zip --site site-b --out result`, then
    `python -m tasks.pacs store result --pacs conf/pacs/mine.yaml`

    Parameters
    ----------
    results
        Files, or folders with *.dcm: what flows.predict wrote.
    pacs
        The PACS: a file like conf/pacs/example.yaml.
    """
    from tasks.pacs.config import load_pacs
    from tasks.pacs.store import files_of, store

    print(store(load_pacs(pacs), files_of(results)))


def _as_sent() -> tuple[Change, str]:
    return lambda dataset: dataset, "identified"


def deidentified(settings, pseudonyms) -> tuple[Change, str]:
    """What is done to every instance on receipt by the params, and the words that the inbox keeps of it."""
    from pipelines.ingest.deidentify import deidentifier

    options = settings.ingest.deidentify
    choices = " ".join(f"{name}={value}" for name, value in options.model_dump(mode="json").items())
    return deidentifier(pseudonyms, options), f"de-identified {choices}"


@contextmanager
def _progress() -> Iterator[Watcher]:
    """Bars on the terminal; nothing where there is none."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        yield Bars(progress)


class Bars(Watcher):
    """A bar for the studies and one for the instances of the current study."""

    def __init__(self, progress) -> None:
        self._progress = progress
        self._studies = progress.add_task("studies", total=None)
        self._instances = progress.add_task("instances", total=None)

    def studies(self, number: int) -> None:
        self._progress.update(self._studies, total=number, completed=0)

    def study(self, missing: int) -> None:
        self._progress.advance(self._studies)
        self._progress.reset(self._instances, total=missing)

    def instance(self, size: int) -> None:
        self._progress.advance(self._instances)

    def waiting(self, seconds: float) -> None:
        self._progress.update(self._instances, description=f"{seconds:.0f} s to the second look")


if __name__ == "__main__":
    run(app)
