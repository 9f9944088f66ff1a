"""Errors a person can act on, and the exit status each one ends a command with."""

from __future__ import annotations


class SemiflowError(Exception):
    """An expected failure. The message is one sentence: what, which file or value, and the way out."""

    exit_code = 1


class DataError(SemiflowError):
    """The command was understood, the data do not allow it (exit status 1)."""


class UsageError(SemiflowError):
    """The command or its parameters cannot be understood (exit status 2)."""

    exit_code = 2


class Refused(DataError):
    """One series, file, image or label cannot be used, and the others go on.

    `code` is stable, `reason` has the numbers, `remedy` is what a person can do.
    """

    def __init__(self, code: str, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.code, self.reason, self.remedy = code, reason, remedy

    def __reduce__(self):  # crosses process borders
        return Refused, (self.code, self.reason, self.remedy)

    def row(self, subject: str, session: str, item: str) -> dict[str, str]:
        """The refusal as a row of quarantine.tsv."""
        return {"subject": subject, "session": session, "item": item, "code": self.code, "reason": self.reason, "remedy": self.remedy}
