"""Fetch what matches a query, and nothing twice; hand a study on when it is whole.

An archive may still be receiving a study that it already lists. So a study is whole when two looks, `settle_s` apart, list the same
instances, as many as the archive counts, and all of them are here. Until then it is "arriving" (the list has changed) or "partial"
(counted or listed instances are missing); both are completed by a later run.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import DataError, Refused
from pipelines.ingest.pseudonyms import Pseudonyms
from tasks.pacs.archive import Archive, Instance, Series, Study, Unavailable, open_archive, patiently
from tasks.pacs.config import DicomWebConfig, DimseConfig
from tasks.pacs.inbox import Inbox, InboxError, Key, open_inbox

if TYPE_CHECKING:
    from pydicom import Dataset

Change = Callable[["Dataset"], "Dataset"]


class Watcher:
    """Told how a retrieval goes on; this one does nothing with it."""

    def studies(self, number: int) -> None: ...

    def study(self, missing: int) -> None:
        """The next study begins, of which `missing` instances are to be fetched."""

    def instance(self, size: int) -> None: ...

    def waiting(self, seconds: float) -> None: ...


MEANING = {"whole": "handed on", "unchanged": "unchanged", "arriving": "still arriving", "partial": "partial", "failed": "failed",
           "empty": "without a wanted series"}


@dataclass
class Summary:
    """What a retrieval did. `unfinished` has one sentence for each study that was not handed on."""

    studies: Counter = field(default_factory=Counter)  # by the keys of MEANING
    fetched: int = 0
    bytes: int = 0
    refused: int = 0
    unfinished: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{self.studies[state]} {meaning}" for state, meaning in MEANING.items() if self.studies[state]) or "none found"
        refused = f", {self.refused} refused (quarantine.tsv says why)" if self.refused else ""
        return "\n".join([f"studies: {counts}; instances: {self.fetched} fetched ({self.bytes / 1e6:.1f} MB){refused}", *self.unfinished])


@dataclass(frozen=True)
class Look:
    """What the archive lists of a study at one moment."""

    series: Sequence[tuple[Series, Sequence[Instance]]]
    keys: dict[Key, Instance]
    expected: int  # the largest of what is listed and what is counted for the study and its series

    @property
    def listing(self) -> str:
        """A hash that changes when an instance comes or goes, or a count changes."""
        return hashlib.sha256("\n".join([str(self.expected), *("/".join(key) for key in sorted(self.keys))]).encode()).hexdigest()


def retrieve(config: DicomWebConfig | DimseConfig, out: Path, pseudonyms: Pseudonyms, change: Change, *, content: str,
             watcher: Watcher | None = None, thorough: bool = False, retry_refused: bool = False) -> Summary:
    """Fetch what `config.query` matches into the inbox `out`.

    `change` is applied to each data set as it arrives (de-identification) and may raise `Refused`; `content` says what it makes, and an inbox
    holds one kind only. `thorough` reads all files that are there again; `retry_refused` fetches what was refused before.
    Raises `Denied`, `Unavailable` (what was fetched is kept) or `UsageError`.
    """
    with open_archive(config) as archive, open_inbox(out, pseudonyms, content) as inbox:
        if retry_refused:
            inbox.journal.forget_refusals()
        return Retrieval(archive, config, inbox, change, watcher=watcher or Watcher(), thorough=thorough).run()


class _Short(Unavailable):
    """An answer without an error that lacks instances."""


class Retrieval:
    """One run of `retrieve`."""

    def __init__(self, archive: Archive, config: DicomWebConfig | DimseConfig, inbox: Inbox, change: Change, *, watcher: Watcher,
                 thorough: bool) -> None:
        self._archive, self._config, self._inbox, self._change = archive, config, inbox, change
        self._watcher, self._thorough, self._summary = watcher, thorough, Summary()

    def run(self) -> Summary:
        try:
            studies = self._ask(self._archive.find_studies, self._config.query)
            self._watcher.studies(len(studies))
            unsettled = [study for study in studies if not self._concluded(self._first_look, study)]
            for study in unsettled:
                self._concluded(self._second_look, study)
        except Unavailable as error:
            raise Unavailable(f"{error}; {self._summary.fetched} instance(s) fetched in this run are kept") from None
        finally:
            self._inbox.write_quarantine()
        return self._summary

    def _ask(self, function: Callable, *arguments: object):
        return patiently(self._config.retries, function, *arguments)

    def _concluded(self, step: Callable[[Study, str], bool], study: Study) -> bool:
        """Take a step with a study: True when this run is done with it. One that fails alone does not end the run."""
        name = self._inbox.name("study", study.uid)
        try:
            return step(study, name)
        except InboxError:
            raise
        except Unavailable as error:
            self._archive.echo()  # raises when it is not this study alone
            self._end(name, "failed", str(error))
        except DataError as error:
            self._end(name, "failed", str(error))
        return True

    def _first_look(self, study: Study, name: str) -> bool:
        look, before = self._look(study), self._inbox.journal.seen(name)
        held = self._inbox.held(name, self._thorough)
        missing = look.keys.keys() - held
        self._watcher.study(len(missing))
        if not look.keys:
            self._end(name, "empty")
            return True
        same = before is not None and before[0] == look.listing
        if same and before[2] == "whole" and not missing:
            self._summary.studies["unchanged"] += 1
            return True
        grown = before is not None and not same
        self._inbox.journal.see(name, look.listing, before[1] if same else time.time(), "arriving" if grown else "partial")
        self._fetch(study, name, look, missing)
        if same and time.time() - before[1] >= self._config.settle_s:
            self._hand_on(name, look)
            return True
        if self._lacking(look, self._inbox.held(name)):  # no use in waiting for a second look
            self._hand_on(name, look)
            return True
        return False

    def _second_look(self, study: Study, name: str) -> bool:
        listing, since, _ = self._inbox.journal.seen(name)
        pause = since + self._config.settle_s - time.time()
        if pause > 0:
            self._watcher.waiting(pause)
            time.sleep(pause)
        look = self._look(study)
        if look.listing == listing:
            self._hand_on(name, look)
        else:
            self._inbox.journal.see(name, look.listing, time.time(), "arriving")
            self._end(name, "arriving", f"the archive's list of it has changed, {look.expected} instance(s) now; run again later")
        return True

    def _look(self, study: Study) -> Look:
        chosen = self._config.query.series_modalities
        listing = self._ask(self._archive.list_study, study.uid, chosen)
        keys = {self._key(series.uid, instance.uid): instance for series, instances in listing.series for instance in instances}
        in_series = sum(max(len(instances), series.instances or 0) for series, instances in listing.series)
        return Look(listing.series, keys, max(in_series, 0 if chosen else listing.counted or 0))

    def _key(self, series: str, instance: str) -> Key:
        return self._inbox.name("series", series), self._inbox.name("instance", instance)

    def _fetch(self, study: Study, name: str, look: Look, missing: Set[Key]) -> None:
        """Fetch what is missing, series by series; what a broken transfer has brought is not asked for again."""
        for series, instances in look.series:
            wanted = {instance.uid: instance for instance in instances if self._key(series.uid, instance.uid) in missing}
            if wanted:
                self._fetch_series(study, series, name, wanted, len(instances))

    def _fetch_series(self, study: Study, series: Series, name: str, wanted: dict[str, Instance], size: int) -> None:
        def receive(dataset: Dataset) -> None:
            uid = str(dataset.get("SOPInstanceUID", ""))
            if wanted.pop(uid, None) is not None:  # others are not asked for: repeated, or newer than the list
                self._take(dataset, study, series, name, self._key(series.uid, uid))

        def attempt() -> None:
            if wanted:
                self._archive.fetch(study.uid, series.uid, list(wanted.values()), len(wanted) == size, receive)
            if wanted:  # the answer of an archive that dies can end early and look complete
                raise _Short(f"{len(wanted)} listed instance(s) did not come")

        with contextlib.suppress(_Short):  # asked often enough: the archive lists what it does not have, and the study stays partial
            self._ask(attempt)

    def _take(self, dataset: Dataset, study: Study, series: Series, name: str, key: Key) -> None:
        """Change and keep one instance. What cannot be read or changed is refused, never kept as it is."""
        try:
            if (dataset.get("StudyInstanceUID"), dataset.get("SeriesInstanceUID")) != (study.uid, series.uid):
                raise Refused("other-series", "the archive sent an instance that says it belongs to another study or series",
                              "have the archive's index repaired, then run with --retry-refused")
            size = self._inbox.put(name, key, self._change(dataset))
        except Refused as refused:
            self._refuse(name, key, refused)
        except (DataError, OSError, MemoryError):
            raise
        except Exception as error:  # pydicom raises many kinds on damaged headers, and their texts hold values
            self._refuse(name, key, Refused("unreadable-instance", f"the instance cannot be read, changed or written again ({type(error).__name__})",
                                            "have it sent to the archive again, then run with --retry-refused"))
        else:
            self._summary.fetched += 1
            self._summary.bytes += size
            self._watcher.instance(size)

    def _refuse(self, name: str, key: Key, refused: Refused) -> None:
        self._inbox.refuse(name, key, refused)
        self._summary.refused += 1
        self._watcher.instance(0)

    def _lacking(self, look: Look, held: Set[Key]) -> int:
        return look.expected - len(look.keys.keys() & held)

    def _hand_on(self, name: str, look: Look) -> None:
        """Hand a settled study on if all of it is here, which is read once more."""
        lacking = self._lacking(look, self._inbox.held(name, thorough=True))
        if lacking:
            self._end(name, "partial", f"{look.expected - lacking} of {look.expected} instance(s) are here; run again later, and if that does not "
                                       "help, have the study checked at the archive")
            return
        self._inbox.hand_on(name, look.keys.keys())
        _, since, _ = self._inbox.journal.seen(name)
        self._inbox.journal.see(name, look.listing, since, "whole")
        self._summary.studies["whole"] += 1

    def _end(self, name: str, state: str, sentence: str = "") -> None:
        self._summary.studies[state] += 1
        if sentence:
            self._summary.unfinished.append(f"study {name} is {MEANING[state]}: {sentence}")
