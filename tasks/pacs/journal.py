"""What an inbox holds and has refused, so that a run takes up where another was killed.

SQLite, because its transactions survive a kill at any moment. Only keyed hashes of UIDs are in it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import Refused

SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS studies (study TEXT PRIMARY KEY, listing TEXT NOT NULL, since REAL NOT NULL, state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS instances (
  study TEXT, series TEXT, instance TEXT, bytes INTEGER, mtime_ns INTEGER, sha256 TEXT, code TEXT, reason TEXT, remedy TEXT,
  PRIMARY KEY (study, series, instance)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Entry:
    """One instance: a file with its size, time and hash, or a refusal (`code`)."""

    series: str
    instance: str
    bytes: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    code: str = ""
    reason: str = ""
    remedy: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.series, self.instance


class Journal:
    """The database beside an inbox. Used by one thread at a time, which need not be the same (a C-MOVE arrives in another)."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.executescript(SCHEMA)

    def close(self) -> None:
        self._database.close()

    def settings(self) -> dict[str, str]:
        return dict(self._database.execute("SELECT name, value FROM settings"))

    def set(self, **settings: str) -> None:
        self._database.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", settings.items())

    def entries(self, study: str) -> list[Entry]:
        rows = self._database.execute(
            "SELECT series, instance, bytes, mtime_ns, sha256, code, reason, remedy FROM instances WHERE study = ?", (study,))
        return [Entry(*row) for row in rows]

    def write(self, study: str, entry: Entry) -> None:
        self._database.execute("INSERT OR REPLACE INTO instances VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (
            study, entry.series, entry.instance, entry.bytes, entry.mtime_ns, entry.sha256, entry.code, entry.reason, entry.remedy))

    def forget(self, study: str, entry: Entry) -> None:
        self._database.execute("DELETE FROM instances WHERE study = ? AND series = ? AND instance = ?", (study, *entry.key))

    def forget_refusals(self) -> None:
        self._database.execute("DELETE FROM instances WHERE code != ''")

    def refusals(self) -> Iterator[tuple[str, str, Refused]]:
        """(study, series/instance, why) of all that was refused."""
        rows = self._database.execute("SELECT study, series, instance, code, reason, remedy FROM instances WHERE code != '' ORDER BY 1, 2, 3")
        for study, series, instance, code, reason, remedy in rows:
            yield study, f"{series}/{instance}", Refused(code, reason, remedy)

    def seen(self, study: str) -> tuple[str, float, str] | None:
        """Of the last look at a study: what the archive listed (a hash), since when (Unix time), and its state."""
        return self._database.execute("SELECT listing, since, state FROM studies WHERE study = ?", (study,)).fetchone()

    def see(self, study: str, listing: str, since: float, state: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO studies VALUES (?, ?, ?, ?)", (study, listing, since, state))
