"""conf/pacs/<name>.yaml as checked models. No secret is ever in the file: it names an environment variable or another file.

Problems are reported by their key, never by their value, because the value may be a password in the wrong place.
"""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, field_validator, model_validator

from pipelines.errors import UsageError
from pipelines.params import Section

#: PS3.5, 6.2: up to 16 characters of the default repertoire, no backslash.
AeTitle = Annotated[str, Field(pattern=r"^[ -\[\]-~]{1,16}$")]
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Secret(Section):
    """Where a secret is: an environment variable or a file, never the secret itself."""

    env: str | None = None
    file: UserPath | None = None

    @model_validator(mode="after")
    def _one_of(self):
        if (self.env is None) == (self.file is None):
            raise ValueError("give exactly one of 'env' and 'file'")
        return self

    def reveal(self) -> str:
        """The secret. Raises `UsageError` when the variable or file is missing or empty."""
        if self.env is not None:
            where, value = f"the environment variable {self.env}", os.environ.get(self.env, "")
        else:
            where, value = f"the file {self.file}", self.file.read_text().strip() if self.file.is_file() else ""
        if not value:
            raise UsageError(f"{where}, which the PACS configuration names for a secret, is missing or empty; set it and run again")
        return value


class Basic(Section):
    kind: Literal["basic"]
    user: str
    password: Secret


class Bearer(Section):
    kind: Literal["bearer"]
    token: Secret


class Tls(Section):
    """Certificates, all PEM. Without `ca` the system's authorities are trusted."""

    ca: UserPath | None = None
    cert: UserPath | None = Field(None, description="our own certificate, where the PACS asks for one")
    key: UserPath | None = None

    @field_validator("ca", "cert", "key")
    @classmethod
    def _exists(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError("this file does not exist")
        return path

    @model_validator(mode="after")
    def _pair(self):
        if (self.cert is None) != (self.key is None):
            raise ValueError("'cert' and 'key' go together")
        return self

    def context(self, server: bool = False) -> ssl.SSLContext:
        """For connections we open (`server` False), or accept: those must show a certificate of `ca`."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH, cafile=self.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if server:
            context.verify_mode = ssl.CERT_REQUIRED
        if self.cert:
            try:
                context.load_cert_chain(self.cert, self.key)
            except (ssl.SSLError, OSError):
                raise UsageError(f"{self.cert} and its key are no pair of PEM files; export them again") from None
        return context


class IdList(Section):
    """Studies of a list, one value a line, instead of all that match. The file stays with you: its values identify patients."""

    attribute: Literal["PatientID", "AccessionNumber", "StudyInstanceUID"]
    file: UserPath

    def values(self) -> list[str]:
        """Raises `UsageError` when the file is missing, is empty or holds a wildcard."""
        lines = [line.strip() for line in self.file.read_text().splitlines()] if self.file.is_file() else []
        values = list(dict.fromkeys(line for line in lines if line))
        if not values:
            raise UsageError(f"the list {self.file} is missing or empty; write one {self.attribute} a line")
        for number, line in enumerate(lines, 1):
            if re.search(r"[*?\\]", line):
                raise UsageError(f"line {number} of {self.file} has a wildcard (* ? \\), which would match other patients; write whole values")
        return values


class Query(Section):
    """Which studies are wanted, and which of their series."""

    modalities: list[str] = Field([], description="studies with a series of one of these, for example [MR, PT]; empty: any")
    series_modalities: list[str] = Field([], description="of those studies, series of these only; empty: whole studies")
    study_date: str = Field("", pattern=r"^(\d{8}|\d{8}-|-\d{8}|\d{8}-\d{8})?$", description="YYYYMMDD or a range YYYYMMDD-YYYYMMDD")
    ids: IdList | None = None

    @model_validator(mode="after")
    def _bounded(self):
        if not (self.modalities or self.study_date or self.ids):
            raise ValueError("give at least one of 'modalities', 'study_date' and 'ids': without, the whole archive is asked for")
        return self


class Retries(Section):
    """A request that fails for a passing reason is sent again after first_s, 2 first_s, 4 first_s ... (at most max_s), each plus up to jitter_s."""

    attempts: int = Field(5, ge=1)
    first_s: float = Field(1.0, ge=0)
    max_s: float = Field(60.0, ge=0)
    jitter_s: float = Field(1.0, ge=0)


class _Archive(Section):
    query: Query
    tls: Tls | None = None
    timeout_s: float = Field(60.0, gt=0, description="to wait for an answer")
    settle_s: float = Field(30.0, ge=0, description="a study is whole when two looks at least this far apart find the same instances")
    retries: Retries = Retries()


class DicomWebConfig(_Archive):
    kind: Literal["dicomweb"]
    url: str
    auth: Annotated[Basic | Bearer, Field(discriminator="kind")] | None = None

    @model_validator(mode="after")
    def _address(self):
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("'url' must look like https://host:port/dicom-web")
        if parts.username or parts.password:
            raise ValueError("'url' must not hold a user or password; use 'auth', which names where they are")
        if parts.scheme == "http" and self.auth and parts.hostname not in LOOPBACK:
            raise ValueError("credentials would travel in the clear; use https")
        return self

    @property
    def address(self) -> str:
        return self.url


class Listen(Section):
    """Where the PACS sends to after a C-MOVE: it must know our AE title at this address."""

    host: str = "0.0.0.0"  # the PACS connects from elsewhere
    port: int = Field(11112, ge=1, le=65535)


class DimseConfig(_Archive):
    kind: Literal["dimse"]
    host: str
    port: int = Field(ge=1, le=65535)
    called_aet: AeTitle = Field(description="the PACS's AE title")
    calling_aet: AeTitle = Field(description="ours, as registered at the PACS")
    retrieve_by: Literal["get", "move"] = "get"
    listen: Listen = Listen()

    @property
    def address(self) -> str:
        return f"{self.called_aet} at {self.host}:{self.port}"


PacsConfig = Annotated[DicomWebConfig | DimseConfig, Field(discriminator="kind")]


def load_pacs(path: Path) -> DicomWebConfig | DimseConfig:
    """Read and check a PACS configuration. Raises `UsageError` with every problem, by key and without values."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist; copy conf/pacs/example.yaml and fill it in")
    try:
        return TypeAdapter(PacsConfig).validate_python(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise UsageError(f"{path} is not YAML (line {line}); compare it with conf/pacs/example.yaml") from None
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, problem['loc'])) or '(top)'}: {_without_value(problem)}" for problem in error.errors()]
        raise UsageError(f"{path} has {len(lines)} problem(s): " + " | ".join(lines)) from None


def _without_value(problem: dict) -> str:
    if problem["type"] == "union_tag_invalid":  # the only message of pydantic's that quotes what was given
        return f"'kind' must be one of {problem['ctx']['expected_tags']}"
    return problem["msg"]
