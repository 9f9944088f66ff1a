"""Who a patient is stays with the holder of a key; outputs carry keyed hashes.

HMAC-SHA256 rather than a plain hash, because patient numbers are few enough to try them all (NISTIR 8053, section 4.3).
The same key gives the same pseudonyms on every machine; without it they cannot be traced back.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
import uuid
from collections.abc import Iterable
from pathlib import Path

from pipelines.errors import UsageError

KEY_VARIABLE = "SEMIFLOW_KEY_FILE"
MIN_KEY_BYTES = 16
SUBJECT_LENGTH = 8  # 32^8 values: two of 10,000 patients collide with a chance of 5e-5, and a collision is refused, not merged
FRAME_LENGTH = 16
MAX_SHIFT_DAYS = 3650


class Pseudonyms:
    """Keyed names for patients, series and frames of reference."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, kind: str, *values: str, length: int = SUBJECT_LENGTH) -> str:
        """A word of A-Z and 2-7 that stands for `values`; `kind` keeps equal values of different kinds apart."""
        digest = hmac.digest(self._key, "\0".join([kind, *values]).encode(), "sha256")
        return base64.b32encode(digest).decode()[:length]

    def uid(self, original: str) -> str:
        """A DICOM UID that stands for `original` wherever it is referred to (PS3.5 annex B.2: 2.25 and a UUID)."""
        digest = hmac.digest(self._key, f"uid\0{original}".encode(), "sha256")
        return f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}"

    def day_shift(self, patient: str, issuer: str = "") -> int:
        """By how many days (1 to 3650) all dates of a patient move into the past."""
        digest = hmac.digest(self._key, "\0".join(["days", patient, issuer]).encode(), "sha256")
        return 1 + int.from_bytes(digest, "big") % MAX_SHIFT_DAYS

    @property
    def key_id(self) -> str:
        """A word that tells keys apart without giving them away."""
        return self("key-id", "")


def load_key(*candidates: Path | None, data: Iterable[Path] = ()) -> bytes:
    """The key of the first file given, else of $SEMIFLOW_KEY_FILE, else the user's own, made at the first run.

    Raises `UsageError` when a file that was asked for is missing, too short to be a key, or below one of the folders `data`, with which it would be
    handed on.
    """
    wanted = [*candidates, Path(os.environ[KEY_VARIABLE]) if os.environ.get(KEY_VARIABLE) else None]
    for path in wanted:
        if path is not None:
            for folder in data:
                if path.resolve().is_relative_to(folder.resolve()):
                    raise UsageError(f"the pseudonym key {path} lies inside {folder}; whoever is given that folder could name the patients, "
                                     "so keep the key elsewhere")
            return _read(path)
    own = Path.home() / ".config" / "semiflow" / "pseudonym.key"
    return _read(own) if own.exists() else _make(own)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise UsageError(f"the pseudonym key {path} does not exist; create it (any {MIN_KEY_BYTES} random bytes or more) or leave "
                         f"cohort.pseudonym_key, --key and ${KEY_VARIABLE} empty for a key of your own")
    key = path.read_bytes().strip()
    if len(key) < MIN_KEY_BYTES:
        raise UsageError(f"the pseudonym key {path} has {len(key)} bytes, at least {MIN_KEY_BYTES} are needed; "
                         "make one with: openssl rand -hex 32")
    return key


def _make(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = secrets.token_hex(32).encode()
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.touch(mode=0o600)
    temporary.write_bytes(key + b"\n")
    try:
        os.link(temporary, path)  # fails when another run made one meanwhile, whose key is then the one
    except FileExistsError:
        return _read(path)
    finally:
        temporary.unlink()
    print(f"made a new pseudonym key, {path}: keep it and back it up, it alone links pseudonyms to patients", flush=True)
    return key
