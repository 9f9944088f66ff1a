"""A PACS by DIMSE (PS3.7): C-ECHO, C-FIND, C-GET or C-MOVE, C-STORE."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from pipelines.errors import DataError, UsageError
from tasks.pacs.archive import Denied, Instance, Listing, Receive, Series, Study, Unavailable, selections, whole_number
from tasks.pacs.config import DimseConfig, Query

if TYPE_CHECKING:
    from pydicom import Dataset
    from pynetdicom import AE
    from pynetdicom.association import Association
    from pynetdicom.events import Event
    from pynetdicom.presentation import PresentationContext

# Statuses of PS3.7 annex C and PS3.4 annex C.4
SUCCESS, WARNING_SUBOPERATIONS, CANNOT_UNDERSTAND, NOT_AUTHORISED, OUT_OF_RESOURCES = 0x0000, 0xB000, 0xC000, 0x0124, 0xA700
DESTINATION_UNKNOWN, SOP_CLASS_NOT_SUPPORTED = 0xA801, 0x0122
PENDING = (0xFF00, 0xFF01)
MAX_CONTEXTS = 128  # of an association (PS3.8, 9.3.2.2)
#: What is asked for where the archive does not say the SOP class of an instance: images, and what is drawn on them.
USUAL_CLASSES = (
    "MRImageStorage", "EnhancedMRImageStorage", "EnhancedMRColorImageStorage", "LegacyConvertedEnhancedMRImageStorage", "CTImageStorage",
    "EnhancedCTImageStorage", "LegacyConvertedEnhancedCTImageStorage", "PositronEmissionTomographyImageStorage", "EnhancedPETImageStorage",
    "LegacyConvertedEnhancedPETImageStorage", "NuclearMedicineImageStorage", "SegmentationStorage", "RTStructureSetStorage",
    "SecondaryCaptureImageStorage", "MultiFrameGrayscaleWordSecondaryCaptureImageStorage", "ParametricMapStorage", "SpatialRegistrationStorage",
    "RawDataStorage")


class Dimse:
    """An `Archive` at a host, port and AE title. One association for each call, so that an idle one cannot time out in between."""

    def __init__(self, config: DimseConfig) -> None:
        self._config = config
        self._tls = config.tls.context() if config.tls else None
        self._server = None
        self._inlet: Callable[[Event], int] = lambda event: NOT_AUTHORISED  # nothing is expected

    def close(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server = None

    def echo(self) -> None:
        from pynetdicom.sop_class import Verification

        with self._associated([_context(Verification)]) as association:
            self._check(self._sending(association.send_c_echo))

    def find_studies(self, query: Query) -> list[Study]:
        found: dict[str, Study] = {}
        with self._finder() as find:
            for keys in selections(query):
                for answer in find("STUDY", {"StudyInstanceUID": "", "NumberOfStudyRelatedInstances": "", "ModalitiesInStudy": "", **keys}):
                    study = Study(str(answer.StudyInstanceUID), whole_number(answer.get("NumberOfStudyRelatedInstances")))
                    found[study.uid] = study
        return list(found.values())

    def list_study(self, study: str, modalities: Collection[str]) -> Listing:
        listed = []
        with self._finder() as find:
            counts = find("STUDY", {"StudyInstanceUID": study, "NumberOfStudyRelatedInstances": ""})
            keys = {"StudyInstanceUID": study, "SeriesInstanceUID": "", "Modality": "", "NumberOfSeriesRelatedInstances": ""}
            for answer in find("SERIES", keys):
                series = Series(str(answer.SeriesInstanceUID), str(answer.get("Modality") or ""),
                                whole_number(answer.get("NumberOfSeriesRelatedInstances")))
                if not modalities or series.modality in modalities:
                    answers = find("IMAGE", {"StudyInstanceUID": study, "SeriesInstanceUID": series.uid, "SOPInstanceUID": "", "SOPClassUID": ""})
                    listed.append((series, [Instance(str(one.SOPInstanceUID), str(one.get("SOPClassUID") or "")) for one in answers]))
        return Listing(whole_number(counts[0].get("NumberOfStudyRelatedInstances")) if counts else 0, listed)

    def fetch(self, study: str, series: str, wanted: Collection[Instance], whole: bool, receive: Receive) -> None:
        """A whole series by one request, else each instance by its own, all on one association."""
        keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        requests = [_identifier("SERIES", keys)] if whole else [_identifier("IMAGE", {**keys, "SOPInstanceUID": one.uid}) for one in wanted]
        intake = _Intake(receive)
        transfer = self._get if self._config.retrieve_by == "get" else self._move
        transfer(requests, wanted, intake)
        intake.reraise()

    def store(self, dataset: Dataset) -> None:
        context = _context(dataset.SOPClassUID, [dataset.file_meta.TransferSyntaxUID])
        with self._associated([context]) as association:
            self._check(self._sending(association.send_c_store, dataset))

    @property
    def _where(self) -> str:
        return f"the PACS {self._config.address}"

    @contextlib.contextmanager
    def _finder(self) -> Iterator[Callable[[str, dict[str, str]], list[Dataset]]]:
        """A function (level, keys) -> answers, for some queries on one association."""
        from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as Model

        with self._associated([_context(Model)]) as association:

            def find(level: str, keys: dict[str, str]) -> list[Dataset]:
                answers = []
                for status, answer in self._sending(association.send_c_find, _identifier(level, keys), Model):
                    self._check(status)
                    if answer is not None:
                        answers.append(answer)
                return answers

            yield find

    def _get(self, requests: Sequence[Dataset], wanted: Collection[Instance], intake: _Intake) -> None:
        from pynetdicom import build_role, evt
        from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet as Model

        classes = _classes(wanted)
        contexts = [_context(Model), *_storage_contexts(classes, MAX_CONTEXTS - 1)]
        roles = [build_role(one, scp_role=True) for one in classes]
        with self._associated(contexts, ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, intake)], patience=len(wanted)) as association:
            for request in requests:
                for status, _ in self._sending(association.send_c_get, request, Model):
                    intake.reraise()
                    self._check(status)

    def _move(self, requests: Sequence[Dataset], wanted: Collection[Instance], intake: _Intake) -> None:
        from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove as Model

        self._listen()
        self._inlet = intake
        try:
            with self._associated([_context(Model)], patience=len(wanted)) as association:
                for request in requests:
                    for status, _ in self._sending(association.send_c_move, request, self._config.calling_aet, Model):
                        intake.reraise()
                        self._check(status)
        finally:
            self._inlet = lambda event: NOT_AUTHORISED

    def _listen(self) -> None:
        """Open our port for what a C-MOVE sends. It takes instances only while one is under way, and `receive` only those wanted."""
        from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt

        if self._server:
            return
        listen, entity = self._config.listen, self._entity()
        entity.require_called_aet = True
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
        secure = self._config.tls.context(server=True) if self._config.tls else None
        try:
            self._server = entity.start_server((listen.host, listen.port), block=False, ssl_context=secure,
                                               evt_handlers=[(evt.EVT_C_STORE, self._arrived)])
        except OSError as error:
            raise UsageError(f"cannot listen at {listen.host}:{listen.port} for a C-MOVE ({error.strerror}); choose another listen.port, and "
                             "tell the PACS's administrator") from None

    def _arrived(self, event: Event) -> int:
        return self._inlet(event)

    def _entity(self) -> AE:
        from pynetdicom import AE

        entity = AE(self._config.calling_aet)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = self._config.timeout_s
        entity.maximum_pdu_size = 0  # no limit
        return entity

    @contextlib.contextmanager
    def _associated(self, contexts: list[PresentationContext], patience: float = 0, **options: object) -> Iterator[Association]:
        """An association with the archive, released at the end. `patience`: seconds to wait in addition, for requests with slow answers."""
        entity = self._entity()
        entity.dimse_timeout += patience
        secure = (self._tls, self._config.host) if self._tls else None
        association = entity.associate(self._config.host, self._config.port, contexts, ae_title=self._config.called_aet, tls_args=secure, **options)
        if not association.is_established:
            raise self._why_not(association)
        try:
            yield association
        except BaseException:
            association.abort()
            raise
        association.release()

    def _why_not(self, association: Association) -> Exception:
        """What is wrong when no association came about; pynetdicom itself only logs it."""
        if association.is_rejected:
            answer = association.acceptor.primitive
            if answer.result == 1:  # rejected-permanent (PS3.8, table 9-21)
                return Denied(f"{self._where} rejects the association ({answer.reason_str.lower()}); called_aet must be its AE title, and "
                              "calling_aet must be registered there")
            return Unavailable(f"{self._where} rejects the association for now ({answer.reason_str.lower()}); try later")
        try:
            with socket.create_connection((self._config.host, self._config.port), self._config.timeout_s) as plain, (
                    self._tls.wrap_socket(plain, server_hostname=self._config.host) if self._tls else contextlib.nullcontext()):
                pass
        except OSError as error:
            return self._unreachable(error)
        hint = "check calling_aet and called_aet, and tls.cert" if self._tls else "check calling_aet and called_aet, and whether it wants tls"
        return Unavailable(f"{self._where} ended the connection without accepting an association; {hint}")

    def _unreachable(self, error: OSError) -> Exception:
        if isinstance(error, ssl.SSLCertVerificationError):
            return Denied(f"no trusted connection to {self._where} ({error.verify_message}); check tls.ca and host")
        if isinstance(error, ssl.SSLError):
            return Denied(f"no TLS connection to {self._where}; check that this port speaks TLS, and tls.cert")
        if isinstance(error, socket.gaierror):
            return UsageError(f"{self._where} cannot be found: its name has no address; check host")
        if isinstance(error, ConnectionRefusedError):
            return Unavailable(f"{self._where} refuses connections; check that it is running and that host and port are right, and run again")
        return Unavailable(f"{self._where} cannot be reached ({error.strerror or 'no answer in time'}); try later")

    def _sending(self, send: Callable, *arguments: object):
        """Send a request. pynetdicom raises `RuntimeError` when the association has ended meanwhile."""
        try:
            return send(*arguments)
        except RuntimeError:
            raise self._lost() from None

    def _lost(self) -> Unavailable:
        return Unavailable(f"{self._where} ended the connection during a request; check that it is running and that {self._config.calling_aet} is "
                           "registered there, and run again")

    def _check(self, status: Dataset) -> None:
        """Raise what a status means. Failed sub-operations raise nothing: the caller sees what did not arrive."""
        if "Status" not in status:
            raise self._lost()
        code = int(status.Status)
        if code in (SUCCESS, WARNING_SUBOPERATIONS, *PENDING):
            return
        if code == DESTINATION_UNKNOWN:
            raise Denied(f"{self._where} does not know {self._config.calling_aet} as a destination (0xA801); its administrator must register it "
                         f"with this host and port {self._config.listen.port}, or set retrieve_by: get")
        if code in (NOT_AUTHORISED, SOP_CLASS_NOT_SUPPORTED):
            raise Denied(f"{self._where} does not allow {self._config.calling_aet} this request (0x{code:04X}); ask its administrator")
        if code & 0xFF00 == OUT_OF_RESOURCES:
            raise Unavailable(f"{self._where} cannot answer now (out of resources, 0x{code:04X}); try later")
        hint = f"; for a C-MOVE, {self._config.calling_aet} may not be registered as its destination" * (self._config.retrieve_by == "move")
        raise DataError(f"{self._where} failed at the request (0x{code:04X}); look the status up in its conformance statement{hint}")


class _Intake:
    """The handler of C-STORE: hands data sets on one at a time, and remembers an error for the thread that waits."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._lock, self._error = receive, threading.Lock(), None

    def __call__(self, event: Event) -> int:
        with self._lock:
            if self._error:
                return OUT_OF_RESOURCES
            try:
                dataset = event.dataset
                dataset.file_meta = event.file_meta
                self._receive(dataset)
            except BaseException as error:
                self._error = error
                return CANNOT_UNDERSTAND
        return SUCCESS

    def reraise(self) -> None:
        if self._error:
            raise self._error


def _identifier(level: str, keys: dict[str, str]) -> Dataset:
    from pydicom import Dataset

    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for key, value in keys.items():
        setattr(identifier, key, value or None)
    if any(not value.isascii() for value in keys.values()):
        identifier.SpecificCharacterSet = "ISO_IR 192"
    return identifier


def _context(abstract_syntax: str, transfer_syntaxes: Sequence[str] | None = None) -> PresentationContext:
    from pynetdicom import build_context

    return build_context(abstract_syntax, list(transfer_syntaxes) if transfer_syntaxes else None)


def _classes(wanted: Collection[Instance]) -> list[str]:
    """The SOP classes to propose. With one unknown, the usual ones as well."""
    from pydicom import uid

    known = {instance.sop_class for instance in wanted}
    usual = [getattr(uid, name) for name in USUAL_CLASSES if hasattr(uid, name)] if "" in known else []
    return list(dict.fromkeys([*sorted(known - {""}), *usual]))


def _storage_contexts(classes: Sequence[str], room: int) -> list[PresentationContext]:
    """Each class with each transfer syntax by its own, so that the archive need not decompress; with fewer syntaxes where that is too many."""
    from pydicom import uid
    from pynetdicom import ALL_TRANSFER_SYNTAXES

    plain = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian]
    images = [[syntax] for syntax in ALL_TRANSFER_SYNTAXES if not syntax.startswith(("1.2.840.10008.1.2.4.10", "1.2.840.10008.1.2.7"))]  # no video
    usual = [plain, [uid.JPEGLosslessSV1], [uid.JPEG2000Lossless], [uid.JPEGLSLossless], [uid.RLELossless], [uid.JPEGBaseline8Bit]]
    choice = next((syntaxes for syntaxes in (images, usual) if len(classes) * len(syntaxes) <= room), [plain])
    return [_context(one, syntaxes) for one in classes for syntaxes in choice][:room]
