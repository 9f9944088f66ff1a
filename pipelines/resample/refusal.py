"""An image or label that cannot be brought to the case's grid: it goes to quarantine, the rest of the case goes on."""

from __future__ import annotations

from pipelines.errors import DataError


class Refused(DataError):
    """`code` is stable, `reason` has the numbers, `remedy` is what a person can do."""

    def __init__(self, code: str, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.code, self.reason, self.remedy = code, reason, remedy

    def row(self, image: dict) -> dict[str, str]:
        """The row of quarantine.tsv for a manifest row."""
        return {"subject": image["subject"], "session": image["session"], "item": image["path"],
                "code": self.code, "reason": self.reason, "remedy": self.remedy}
