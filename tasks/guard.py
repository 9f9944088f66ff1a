"""Run a command so that it cannot outlive whoever asked for it.

Killing DVC alone leaves the stage it started writing on, and a flow that dies of `kill -9` cannot kill anything. So the command runs
under this guard, which leads a process group of its own and reads a pipe that only the asking process holds open: when that process
dies, in whatever way, the pipe ends, and the guard takes the whole group down with it. (Linux's parent-death signal would not do: it
fires when the starting *thread* ends, and reaches one process, not its children.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

GRACE_S = 5.0


def start(command: Sequence[str], cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen:
    """Start `command` under a guard, stdout and stderr joined in `.stdout` as text lines. The guard's pid is its process group."""
    return subprocess.Popen([sys.executable, "-I", __file__, *command], cwd=cwd, env=env, text=True, errors="replace", bufsize=1,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def kill(process: subprocess.Popen) -> None:
    """End the whole group of a guarded command, at once."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _die_with_parent() -> None:
    sys.stdin.buffer.read()  # returns at the end of the pipe: the asking process is gone or has closed it
    os.killpg(0, signal.SIGKILL)


def _end_what_is_left() -> None:
    """End what a command leaves behind when it is killed. Idle workers of a pool hold the output open for minutes, and the asking process waits.

    Asked first, so that a pool's tracker can give back the memory that the workers shared.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deadline = time.monotonic() + GRACE_S
    if _others():
        os.killpg(0, signal.SIGTERM)
    while (left := _others()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _others() -> list[int]:
    """Living processes of this group but this one."""
    found = []
    for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if pid != os.getpid() and os.getpgid(pid) == os.getpgrp() and state != "Z":
                found.append(pid)
    return found


def main() -> int:
    """The guard itself: run the command of argv, exit as it does."""
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    status = process.wait()
    _end_what_is_left()
    sys.stdout.flush()
    os._exit(status if status >= 0 else 128 - status)  # no interpreter shutdown: the thread is still reading


if __name__ == "__main__":
    main()
