"""What this machine has already worked out about files, so that a run with nothing to do reads none of them again.

As Git's index does, it trusts a file whose size, times and inode are those of when it was looked at. Whoever writes to a file changes its
ctime, which cannot be set back; what changes bytes beneath the file system goes unnoticed until the file is read in full
(`python -m pipelines.embed --check-all`).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pipelines.outputs import sha256, write_text

#: File times advance in ticks of the kernel (1 to 10 ms). Whatever changes a file after twice that has a later ctime.
TICK_SECONDS = 0.02


class Remembered:
    """Facts about files, and facts about anything else under a key that says what they depend on. Written under the cache's lock."""

    def __init__(self, path: Path, *, forget_files: bool = False) -> None:
        self.path = path
        content = _read(path)
        self._files: dict[str, dict] = {} if forget_files else content.get("files", {})
        self._facts: dict[str, list] = content.get("facts", {})

    def of_file(self, file: Path, what: str) -> Any:
        """What was kept of `file` under `what`; None where nothing was, or the file is another one by now."""
        entry = self._files.get(str(file))
        return entry["facts"].get(what) if entry and entry["stat"] == _stat(file) else None

    def keep_of_file(self, file: Path, what: str, value: Any) -> None:
        """Keep a fact about `file` as it is now."""
        stat = _stat(file)
        if stat is None:
            return
        entry = self._files.get(str(file))
        if entry is None or entry["stat"] != stat:
            entry = self._files[str(file)] = {"stat": stat, "facts": {}}
        entry["facts"][what] = value

    def sha256(self, file: Path) -> str:
        """SHA-256 of a file's bytes, read only where it is not known."""
        digest = self.of_file(file, "sha256")
        if digest is None:
            digest = sha256(file)
            self.keep_of_file(file, "sha256", digest)
        return digest

    def of_key(self, what: str, key: str) -> Any:
        """The last fact kept under `what`, if it was for the same `key`."""
        kept_for, value = self._facts.get(what, [None, None])
        return value if kept_for == key else None

    def keep_of_key(self, what: str, key: str, value: Any) -> None:
        self._facts[what] = [key, value]

    def save(self) -> None:
        """Write all that still holds."""
        time.sleep(TICK_SECONDS)  # a file that was written a moment ago could otherwise change again and keep its ctime
        current = {name: entry for name, entry in self._files.items() if entry["stat"] == _stat(Path(name))}
        write_text(self.path, json.dumps({"files": current, "facts": self._facts}, sort_keys=True))


def _stat(file: Path) -> list[int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _read(path: Path) -> dict:
    """The notes of earlier runs; none where they are missing, damaged or not of this form."""
    try:
        content = json.loads(path.read_text())
        entries, facts = content["files"].values(), content["facts"].values()
        return content if all(set(entry) == {"stat", "facts"} for entry in entries) and all(len(fact) == 2 for fact in facts) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
