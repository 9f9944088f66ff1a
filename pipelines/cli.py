"""One way to run a stage from the command line: clear errors, two exit statuses, never a traceback for an expected failure."""

from __future__ import annotations

import atexit
import gc
import sys
from typing import NoReturn

import cyclopts

from pipelines.errors import SemiflowError

#: Python's own first value is 700 (10, 10): while torch and pandas are imported it looks for garbage two hundred times, and there is none.
THRESHOLDS = (20_000, 20, 20)


def collect_seldom() -> None:
    """Look for garbage in reference cycles less often, and not once more when the process ends: a third of what importing and leaving torch costs."""
    gc.set_threshold(*THRESHOLDS)
    atexit.register(gc.freeze)


def run(app: cyclopts.App, argv: list[str] | None = None) -> NoReturn:
    """Run `app` and exit: 0 done, 1 the data do not allow it, 2 the command or params.yaml is wrong."""
    collect_seldom()
    try:
        app(argv, exit_on_error=False, print_error=True)
    except cyclopts.CycloptsError:
        sys.exit(2)
    except SemiflowError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
