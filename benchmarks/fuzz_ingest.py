"""Damage small series in every way a disk, a network or a vendor does, and see what the ingest makes of them: `python -m benchmarks.fuzz_ingest`.

What may come out is a refusal, or a volume whose every slice a second, plain reading of the damaged files shows too (`independent.py`): a bit that
flips in a pixel or a position gives another image, and no program can know. A crash, a hang, a volume that the files do not hold, or the patient's
name in a message is a fault.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import multiprocessing.connection
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cyclopts

from benchmarks.damage import bases, damaged
from benchmarks.random_series import NAME, NUMBER
from pipelines.cli import run

HANG_S = 20.0
WHOLE_STAGE_EVERY = 50
FAULTS = ("crash", "hang", "wrong-volume", "name-leaked")

app = cyclopts.App(name="python -m benchmarks.fuzz_ingest")


@app.default
def main(*, count: int = 10_000, seed: int = 0, jobs: int = 2, mosaics: Path | None = None) -> None:
    """Convert COUNT damaged series and count what becomes of them. Exit status 1 when any is a fault.

    For example: `python -m benchmarks.fuzz_ingest --count 10000 --mosaics dcm_qa_nih/In/20180918Si`

    Parameters
    ----------
    count
        How many series to damage. Each is damaged once to three times, and every 50th goes through the whole stage too.
    seed
        Of the random numbers: a fault is found again by its number and this.
    jobs
        Processes. One that dies or takes more than 20 s for a series is counted and replaced.
    mosaics
        Folder with Siemens mosaics to damage as well.
    """
    start = time.perf_counter()
    report = fuzz(range(count), seed, jobs, mosaics)
    taken = time.perf_counter() - start
    print(report)
    print(f"{count} series in {taken:.0f} s, {count / taken:.0f} per second")
    if report.faults:
        sys.exit(1)


@dataclass
class Report:
    """Outcomes by kind of damage, and the numbers of the faults."""

    outcomes: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, number: int, damage: str, outcome: str, detail: str) -> None:
        self.outcomes[outcome] += 1
        if outcome in FAULTS:
            self.faults.append(f"{outcome}: number {number} ({damage}) {detail}".rstrip())

    def __str__(self) -> str:
        lines = [f"  {count:6}  {outcome}" for outcome, count in self.outcomes.most_common()]
        return "\n".join([*lines, *(f"FAULT {fault}" for fault in self.faults), f"{len(self.faults)} faults"])


def outcome(number: int, seed: int, mosaics: Path | None, folder: Path) -> tuple[str, str, str]:
    """(damage, outcome, detail) of one damaged series."""
    damage, files, before = damaged(number, seed, mosaics)
    source, undamaged = folder / "in", folder / "undamaged"
    for place, contents in ((source, files), (undamaged, before)):
        place.mkdir(parents=True)
        for index, content in enumerate(contents):
            (place / f"{index:04d}.dcm").write_bytes(content)
    try:
        found = _converted(source, undamaged)
        if number % WHOLE_STAGE_EVERY == 0 and found[0] not in FAULTS and (leaked := _stage(source, folder)):
            found = leaked
    except Exception as error:
        import traceback

        found = "crash", f"{type(error).__name__} at {traceback.extract_tb(error.__traceback__)[-1]}"
    return damage, *found


def _converted(source: Path, undamaged: Path) -> tuple[str, str]:
    """What `convert` makes of a folder: its refusals' codes, 'volume', or a fault. A volume may show the damaged files, or what they were."""
    from benchmarks.independent import explained, slices
    from pipelines.errors import Refused
    from pipelines.ingest.convert import convert
    from pipelines.ingest.headers import quiet
    from pipelines.ingest.source import open_source

    with open_source(source) as files:
        results = [one.result for one in convert([file for file in files if not file.is_nifti])]
    if any(_names_patient(f"{result.reason} {result.remedy}") for result in results if isinstance(result, Refused)):
        return "name-leaked", "in a refusal"
    if volumes := [result for result in results if not isinstance(result, Refused)]:
        with quiet():
            truth = slices(sorted(source.iterdir()))
            whole = slices(sorted(undamaged.iterdir()))
        for volume in volumes:
            if not any(explained(volume.array, volume.affine, volume.slice_axis, found) for found in (truth, whole)):
                return "wrong-volume", f"{volume.array.shape}"
    codes = sorted({result.code for result in results if isinstance(result, Refused)})
    return ("volume" + (" and refusals" if codes else "") if volumes else f"refused: {codes[0]}" if codes else "nothing"), ""


def _stage(source: Path, folder: Path) -> tuple[str, str] | None:
    """Run the whole stage; a fault where its outputs or messages name the patient."""
    from pipelines.errors import DataError
    from pipelines.ingest.stage import ingest
    from pipelines.params import SiteRule, load_params

    params = load_params()
    params = params.model_copy(update={"cohort": params.cohort.model_copy(update={"site": SiteRule(constant="here"), "pseudonym_key": ""})})
    (folder / "key").write_bytes(b"a key that is used by the fuzzer only")
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            ingest(source, folder / "out", params, key_file=folder / "key", jobs=1)
        except DataError as error:
            print(error)
    written = [path.read_text(errors="replace") for path in (folder / "out").rglob("*") if path.suffix in (".tsv", ".json")]
    return ("name-leaked", "in the stage's outputs") if _names_patient("\n".join([said.getvalue(), *written])) else None


def _names_patient(text: str) -> bool:
    return any(word.casefold() in text.casefold() for word in (*NAME.split("^"), NUMBER))


def fuzz(numbers: Sequence[int], seed: int, jobs: int, mosaics: Path | None = None) -> Report:
    """Outcomes of the damaged series `numbers`, worked on by `jobs` processes under a watchdog."""
    report, todo, workers = Report(), iter(numbers), {}
    bases(mosaics)  # once, before processes are forked
    with tempfile.TemporaryDirectory(prefix="semiflow-fuzz-") as folder:
        for name in range(jobs):
            _start(workers, Path(folder, str(name)), seed, mosaics, todo)
        while workers:
            for connection in multiprocessing.connection.wait(list(workers), timeout=1.0):
                worker = workers[connection]
                try:
                    report.add(worker.number, *connection.recv())
                    _next(workers, connection, todo)
                except EOFError:
                    worker.process.join()
                    report.add(worker.number, "?", "crash", f"the process died with status {worker.process.exitcode}")
                    _replace(workers, connection, seed, mosaics, todo)
            for connection, worker in list(workers.items()):
                if time.monotonic() - worker.since > HANG_S:
                    worker.process.kill()
                    worker.process.join()
                    report.add(worker.number, "?", "hang", "")
                    _replace(workers, connection, seed, mosaics, todo)
    return report


@dataclass
class _Worker:
    process: multiprocessing.Process
    folder: Path
    number: int = -1
    since: float = 0.0


def _start(workers: dict, folder: Path, seed: int, mosaics: Path | None, todo: Iterator[int]) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, seed, mosaics, folder), daemon=True)
    process.start()
    theirs.close()
    workers[ours] = _Worker(process, folder)
    _next(workers, ours, todo)


def _next(workers: dict, connection, todo: Iterator[int]) -> None:
    """Give a process its next number, or let it end."""
    if (number := next(todo, None)) is None:
        connection.send(None)
        workers.pop(connection).process.join()
        return
    workers[connection].number, workers[connection].since = number, time.monotonic()
    connection.send(number)


def _replace(workers: dict, connection, seed: int, mosaics: Path | None, todo: Iterator[int]) -> None:
    folder = workers.pop(connection).folder
    connection.close()
    _start(workers, folder, seed, mosaics, todo)


def _work(connection, seed: int, mosaics: Path | None, folder: Path) -> None:
    import warnings

    warnings.simplefilter("ignore")
    while (number := connection.recv()) is not None:
        shutil.rmtree(folder, ignore_errors=True)
        connection.send(outcome(number, seed, mosaics, folder))


if __name__ == "__main__":
    run(app)
