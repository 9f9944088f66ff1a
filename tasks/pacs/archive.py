"""What an archive offers, whatever protocol it speaks, and the ways in which it fails.

UIDs are identifiers too: they live in these objects and in requests, and no message holds one.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipelines.errors import DataError, UsageError
from pipelines.ingest.headers import quiet
from tasks.pacs.config import DicomWebConfig, DimseConfig, Query, Retries

if TYPE_CHECKING:
    from pydicom import Dataset

#: They log UIDs, addresses with UIDs, parts of headers and tracebacks.
TALKATIVE = ("dicomweb_client", "pynetdicom", "urllib3", "requests", "retrying")


class Unavailable(DataError):
    """The archive cannot answer now; the same request may succeed later."""


class Denied(UsageError):
    """The archive, or our own check of it, refuses: password, certificate, AE title. Trying again changes nothing."""


class Absent(DataError):
    """The archive does not have that instance (any more)."""


@dataclass(frozen=True)
class Study:
    """`instances` is the archive's own count (Number of Study Related Instances), None where it does not say."""

    uid: str
    instances: int | None


@dataclass(frozen=True)
class Series:
    uid: str
    modality: str
    instances: int | None


@dataclass(frozen=True)
class Instance:
    uid: str
    sop_class: str = ""  # empty where the archive does not say


@dataclass(frozen=True)
class Listing:
    """A study's instances by series, and the archive's own count of them (0 where it has none, None where it does not say)."""

    counted: int | None
    series: list[tuple[Series, list[Instance]]]


Receive = Callable[["Dataset"], None]


class Archive(Protocol):
    """A PACS. Every method raises `Unavailable`, `Denied` or `DataError`, each one sentence without identifiers."""

    def echo(self) -> None:
        """Return when the archive answers and accepts us."""

    def find_studies(self, query: Query) -> list[Study]:
        """The studies that match, each once."""

    def list_study(self, study: str, modalities: Collection[str]) -> Listing:
        """What the archive has of a study at this moment; of series of `modalities` only, where there are any."""

    def fetch(self, study: str, series: str, wanted: Collection[Instance], whole: bool, receive: Receive) -> None:
        """Hand each wanted instance to `receive` as it arrives, one at a time. `whole` says that all of the series is wanted.

        Returning does not mean that all arrived: the caller counts. What `receive` raises ends the transfer and is raised here.
        """

    def store(self, dataset: Dataset) -> None:
        """Send one instance to the archive."""

    def close(self) -> None: ...


def selections(query: Query) -> Iterator[dict[str, str]]:
    """The query as matching keys, one dict for each request: archives differ in what they make of lists, so each value is asked for alone."""
    values = query.ids.values() if query.ids else [""]
    for value in values:
        for modality in query.modalities or [""]:
            keys = {"ModalitiesInStudy": modality, "StudyDate": query.study_date}
            if query.ids:
                keys[query.ids.attribute] = value
            yield {key: text for key, text in keys.items() if text}


def whole_number(value: object) -> int | None:
    """A count of an answer, None where there is none."""
    try:
        return int(str(value))
    except ValueError:
        return None


def patiently(retries: Retries, function: Callable, *arguments: object):
    """Call `function`, again after exponentially growing pauses while it raises `Unavailable`."""
    from retrying import Retrying

    return Retrying(
        stop_max_attempt_number=retries.attempts, wait_exponential_multiplier=500 * retries.first_s, wait_exponential_max=1000 * retries.max_s,
        wait_jitter_max=1000 * retries.jitter_s, retry_on_exception=lambda error: isinstance(error, Unavailable)).call(function, *arguments)


@contextlib.contextmanager
def open_archive(config: DicomWebConfig | DimseConfig) -> Iterator[Archive]:
    """The archive of a configuration, with the libraries below it silenced. Nothing is sent yet."""
    from tasks.pacs.dicomweb import DicomWeb
    from tasks.pacs.dimse import Dimse

    with silent(), quiet(), contextlib.closing(DicomWeb(config) if isinstance(config, DicomWebConfig) else Dimse(config)) as archive:
        yield archive


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep the protocol libraries out of every log, also of one that a caller set up for all loggers."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    before: Mapping[logging.Logger, int] = {logger: logger.level for logger in loggers}
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
