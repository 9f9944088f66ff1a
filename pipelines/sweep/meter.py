"""What a piece of work costs this process: seconds, and the most memory it held."""

from __future__ import annotations

import resource
import time
from pathlib import Path

STATUS = Path("/proc/self/status")
#: Writing 5 here lets the kernel forget the highest memory so far (proc(5)).
RESET = Path("/proc/self/clear_refs")


class Meter:
    """Begins when made. Where the kernel cannot forget earlier peaks (not Linux), the memory is the most that the process ever held."""

    def __init__(self):
        self.start = time.perf_counter()
        if RESET.exists():
            RESET.write_text("5")

    def read(self) -> dict[str, float]:
        """`seconds` since it began and `peak_mb`, the highest resident memory (10^6 bytes), all libraries included."""
        return {"seconds": round(time.perf_counter() - self.start, 3), "peak_mb": round(_peak_bytes() / 1e6, 1)}


def _peak_bytes() -> int:
    if STATUS.exists():
        return 1024 * next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
