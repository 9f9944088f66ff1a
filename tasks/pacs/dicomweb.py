"""A PACS by DICOMweb (PS3.18): QIDO-RS to find, WADO-RS to retrieve, STOW-RS to store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING

from pipelines.errors import DataError
from tasks.pacs.archive import Absent, Denied, Instance, Listing, Receive, Series, Study, Unavailable, selections, whole_number
from tasks.pacs.config import Basic, DicomWebConfig, Query

if TYPE_CHECKING:
    import requests
    from pydicom import Dataset

#: As stored, not transcoded (PS3.18, 8.7.3.5.2): pixel values stay what the scanner wrote.
AS_STORED = (("application/dicom", "*"),)
PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
MISSING = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


class DicomWeb:
    """An `Archive` at the address of a DICOMweb service. Certificates and passwords come from the configuration alone, never from ~/.netrc."""

    def __init__(self, config: DicomWebConfig) -> None:
        from dicomweb_client.api import DICOMwebClient

        self._config, self._session = config, _session(config)
        self._client = DICOMwebClient(config.url.rstrip("/"), session=self._session, timeout=config.timeout_s, permissive_uid=True)
        self._client.set_http_retry_params(retry=False)  # the caller repeats what is missing, not whole requests

    def close(self) -> None:
        self._session.close()

    def echo(self) -> None:
        with self._translated():
            self._client.search_for_studies(limit=1)

    def find_studies(self, query: Query) -> list[Study]:
        found: dict[str, Study] = {}
        for keys in selections(query):
            for entry in self._pages(self._client.search_for_studies, "0020000D", search_filters=keys, fields=["NumberOfStudyRelatedInstances"]):
                study = Study(_value(entry, "0020000D"), whole_number(_value(entry, "00201208")))
                found[study.uid] = study
        return list(found.values())

    def list_study(self, study: str, modalities: Collection[str]) -> Listing:
        with self._translated():
            counts = self._client.search_for_studies(search_filters={"StudyInstanceUID": study}, fields=["NumberOfStudyRelatedInstances"])
        listed = []
        for entry in self._pages(self._client.search_for_series, "0020000E", study, fields=["NumberOfSeriesRelatedInstances"]):
            series = Series(_value(entry, "0020000E"), _value(entry, "00080060"), whole_number(_value(entry, "00201209")))
            if not modalities or series.modality in modalities:
                instances = self._pages(self._client.search_for_instances, "00080018", study, series.uid)
                listed.append((series, [Instance(_value(one, "00080018"), _value(one, "00080016")) for one in instances]))
        return Listing(whole_number(_value(counts[0], "00201208")) if counts else 0, listed)

    def fetch(self, study: str, series: str, wanted: Collection[Instance], whole: bool, receive: Receive) -> None:
        """A whole series in one request, read part by part; else each instance by its own, and one that is gone is left out."""
        if whole and len(wanted) > 1:
            with self._translated():
                parts = self._client.iter_series(study, series, media_types=AS_STORED)
            while (dataset := self._next(parts)) is not None:
                receive(dataset)
            return
        for instance in wanted:
            try:
                with self._translated():
                    dataset = self._client.retrieve_instance(study, series, instance.uid, media_types=AS_STORED)
            except Absent:
                continue
            receive(dataset)

    def store(self, dataset: Dataset) -> None:
        with self._translated():
            answer = self._client.store_instances([dataset])
        failed = answer.get("FailedSOPSequence") if answer is not None else None
        if failed:
            raise DataError(f"{self._where} did not store the instance (failure reason 0x{failed[0].get('FailureReason', 0):04X}); look it up in its "
                            "conformance statement")

    @property
    def _where(self) -> str:
        return f"the PACS {self._config.address}"

    def _next(self, parts: Iterator[Dataset]) -> Dataset | None:
        """The next part. What the caller does with it stays outside: its errors are not the archive's."""
        with self._translated():
            return next(parts, None)

    def _pages(self, search: Callable, key: str, *arguments: str, **options: object) -> list[dict]:
        """All pages of an answer, until one brings nothing new (some servers ignore `offset` and would go on for ever)."""
        found: dict[str, dict] = {}
        while True:
            with self._translated():
                page = search(*arguments, offset=len(found), **options)
            before = len(found)
            found |= {_value(entry, key): entry for entry in page if _value(entry, key)}
            if len(found) == before:
                return list(found.values())

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of requests as one sentence each. Their own texts hold addresses with UIDs."""
        import requests
        from pydicom.errors import InvalidDicomError

        try:
            yield
        except requests.HTTPError as error:
            raise self._refusal(error.response.status_code) from None
        except requests.exceptions.SSLError as error:
            raise Denied(f"no trusted connection to {self._where} ({_tls_problem(str(error))}); check tls.ca, tls.cert and the host's name") from None
        except requests.Timeout:
            raise Unavailable(f"{self._where} gave no answer for {self._config.timeout_s:g} s; try later or raise timeout_s") from None
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            if "alert" in str(error).lower():  # the server's refusal of our certificate arrives after the handshake (TLS 1.3)
                raise Denied(f"{self._where} ended the TLS connection ({_tls_problem(str(error))}); give it a certificate by tls.cert") from None
            what = "refuses connections" if "refused" in str(error).lower() else "ended the connection"
            raise Unavailable(f"{self._where} {what}; check that it is running and that the address is right, and run again") from None
        except (requests.RequestException, InvalidDicomError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise DataError(f"{self._where} answered with something else than DICOMweb ({type(error).__name__}); check url, which usually "
                            "ends in /dicom-web") from None

    def _refusal(self, status: int) -> Exception:
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            given = "the credentials given" if self._config.auth else "a request without credentials"
            return Denied(f"{self._where} refuses {given} (HTTP {status}); check auth in its configuration and what the account may do")
        if status in PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return Unavailable(f"{self._where} cannot answer now (HTTP {status}); try later")
        if status in MISSING:
            return Absent(f"{self._where} has no such thing (HTTP {status}); check url, which usually ends in /dicom-web")
        return DataError(f"{self._where} does not accept the request (HTTP {status}); compare the query with its conformance statement")


def _session(config: DicomWebConfig) -> requests.Session:
    import requests

    session = requests.Session()
    session.trust_env = False  # ~/.netrc and $REQUESTS_CA_BUNDLE would override the configuration
    if config.tls:
        session.verify = str(config.tls.ca) if config.tls.ca else True
        session.cert = (str(config.tls.cert), str(config.tls.key)) if config.tls.cert else None
    if isinstance(config.auth, Basic):
        session.auth = (config.auth.user.encode(), config.auth.password.reveal().encode())
    elif config.auth:
        session.headers["Authorization"] = f"Bearer {config.auth.token.reveal()}"
    return session


def _value(entry: dict, tag: str) -> str:
    """The first value of a tag in DICOM JSON, as text."""
    values = entry.get(tag, {}).get("Value") or [""]
    return "" if values[0] is None else str(values[0])


def _tls_problem(text: str) -> str:
    """What OpenSSL says, without the address around it."""
    known = {"self-signed": "its certificate is signed by an authority that is not trusted", "self signed": "its certificate is self-signed",
             "unable to get": "its certificate is signed by an authority that is not trusted", "expired": "its certificate has expired",
             "match": "its certificate is for another host", "wrong_version": "it speaks no TLS at this port",
             "wrong version": "it speaks no TLS at this port", "alert": "it refuses our certificate or asks for one"}
    return next((meaning for sign, meaning in known.items() if sign in text.lower()), "the TLS handshake failed")
