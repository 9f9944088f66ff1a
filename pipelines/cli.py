"""One way to run a stage from the command line: clear errors, two exit statuses, never a traceback for an expected failure."""

from __future__ import annotations

import sys
from typing import NoReturn

import cyclopts

from pipelines.errors import SemiflowError


def run(app: cyclopts.App, argv: list[str] | None = None) -> NoReturn:
    """Run `app` and exit: 0 done, 1 the data do not allow it, 2 the command or params.yaml is wrong."""
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
