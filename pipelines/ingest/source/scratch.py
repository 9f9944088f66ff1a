"""A private folder for unpacked patient files, gone when the run is: at its end, on a signal, and, after a kill -9, at the next start."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

PREFIX = "semiflow-"
OWNER = "owner"  # holds the process id, locked while that process lives
SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder that only this user can read (mode 0700), below the temporary folder ($TMPDIR)."""
    remove_stale(Path(tempfile.gettempdir()))
    with _ending_on_signals():
        # Locked under another name first, so that no other start can find the folder without its lock.
        made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))
        folder = made.with_name(made.name.removeprefix("."))
        try:
            with (made / OWNER).open("w") as owner:
                fcntl.flock(owner, fcntl.LOCK_EX)
                owner.write(str(os.getpid()))
                owner.flush()
                made.rename(folder)
                files = folder / "files"
                files.mkdir()
                yield files
        finally:
            shutil.rmtree(made, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)


def remove_stale(temporary: Path) -> int:
    """Remove scratch folders of this user whose process is dead; returns how many. The lock tells, because process ids are used again."""
    removed = 0
    for folder in temporary.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            with (folder / OWNER).open() as owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                removed += 1
    return removed


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the program the ordinary way, so that unpacked files are removed. Only the main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda got, _: sys.exit(128 + got)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
