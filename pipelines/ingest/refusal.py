"""What happens to one series or file that cannot be used: it is refused with a stable code, and the others go on."""

from __future__ import annotations

from pipelines.errors import DataError


class Refused(DataError):
    """One series, file or label cannot be used. `code` is stable, `reason` has the numbers, `remedy` is what a person can do."""

    def __init__(self, code: str, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.code, self.reason, self.remedy = code, reason, remedy

    def __reduce__(self):  # crosses process borders
        return Refused, (self.code, self.reason, self.remedy)

    def row(self, subject: str, session: str, item: str) -> dict[str, str]:
        """The refusal as a row of quarantine.tsv."""
        return {"subject": subject, "session": session, "item": item, "code": self.code, "reason": self.reason, "remedy": self.remedy}
