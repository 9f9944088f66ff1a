"""What each labelled patient of a site is for: to learn from (support), to set the temperature (calibration), to judge models (query).

A site's cases arrive over months, and models are compared on the query cases again and again. A patient who moved from query to support would
flatter every model after that, so a role is given once, in the order of arrival, and kept. Each new patient gets the role that is furthest below its
share, so that the shares hold at any number; who of one batch comes first is decided by a hash of the pseudonym, which nobody chose.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import DataError
from pipelines.outputs import write_text
from pipelines.sites.params import Roles

#: In this order among roles that are equally far below their share: nothing can be learned without support, or judged without query.
ROLES = ("support", "query", "calibration")
COLUMNS = ("subject", "role", "batch")
#: Shares are sums of decimal fractions; gaps that differ by less are equal.
ROUNDING = 9


@dataclass(frozen=True)
class Given:
    """The role of one patient. `batch` counts the arrivals of new labelled patients from 1."""

    subject: str
    role: str
    batch: int


def extend(given: Sequence[Given], subjects: Iterable[str], shares: Roles) -> list[Given]:
    """`given` unchanged, followed by a role for every one of `subjects` that has none yet (one batch)."""
    known = {entry.subject for entry in given}
    counts = Counter(entry.role for entry in given)
    batch = max((entry.batch for entry in given), default=0) + 1
    table = list(given)
    for subject in sorted(set(subjects) - known, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        role = furthest_below(counts, shares)
        counts[role] += 1
        table.append(Given(subject, role, batch))
    return table


def furthest_below(counts: Counter[str], shares: Roles) -> str:
    """The role that lacks most of its share once there is one patient more. Support is never wanted beyond `shares.most_support`."""
    open_roles = [role for role in ROLES if getattr(shares, role) > 0 and (role != "support" or counts[role] < shares.most_support)]
    whole = sum(getattr(shares, role) for role in open_roles)
    total = sum(counts[role] for role in open_roles) + 1
    return max(open_roles, key=lambda role: round(getattr(shares, role) / whole * total - counts[role], ROUNDING))  # the first among equals


def read_roles(path: Path) -> list[Given]:
    """The roles in `path`, in the order they were given; none where there is no such file. Raises `DataError` where it is no such table."""
    if not path.is_file():
        return []
    rows = list(csv.reader(io.StringIO(path.read_text()), delimiter="\t"))
    try:
        if tuple(rows[0]) != COLUMNS or any(row[1] not in ROLES for row in rows[1:]):
            raise ValueError
        table = [Given(subject, role, int(batch)) for subject, role, batch in rows[1:]]
        if len({entry.subject for entry in table}) < len(table):
            raise ValueError
    except (ValueError, IndexError):
        raise DataError(f"{path} is no table of {', '.join(COLUMNS)} with a row a subject; restore it from a backup, because roles must not "
                        "change") from None
    return table


def write_roles(path: Path, given: Sequence[Given]) -> None:
    """Write the table, but only if it begins with what is there: a role never changes."""
    before = read_roles(path)
    if list(given[:len(before)]) != before:
        raise DataError(f"{path} has {len(before)} role(s) that the new table does not begin with; a role that was given never changes")
    lines = ["\t".join(COLUMNS), *("\t".join([entry.subject, entry.role, str(entry.batch)]) for entry in given)]
    if len(given) > len(before) or not path.is_file():
        write_text(path, "\n".join(lines) + "\n")
