"""Where things lie in a site's workspace. Stages and tasks take it from here, so that no path is spelled twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Folders:
    """The workspace of one site at `folder` (`<service.root>/<site>`)."""

    folder: Path

    @property
    def inbox(self) -> Path:
        """Studies as they arrive."""
        return self.folder / "inbox"

    @property
    def params(self) -> Path:
        return self.folder / "params.yaml"

    @property
    def bids(self) -> Path:
        return self.folder / "data" / "bids"

    @property
    def resampled(self) -> Path:
        return self.folder / "data" / "resampled"

    @property
    def prompts(self) -> Path:
        return self.folder / "data" / "prompts"

    @property
    def embeddings(self) -> Path:
        return self.folder / "data" / "embeddings"

    @property
    def roles(self) -> Path:
        """Subject -> support, calibration or query; rows are only ever added."""
        return self.folder / "roles.tsv"

    @property
    def lesson(self) -> Path:
        """What the next challenger is made of and judged on."""
        return self.folder / "lesson.json"

    @property
    def rival(self) -> Path:
        """Which champion the challenger is judged against."""
        return self.folder / "rival.json"

    @property
    def champion(self) -> Path:
        """The model that is served now: `fit/`, `text/`, `champion.json`."""
        return self.folder / "champion"

    @property
    def challenger(self) -> Path:
        """What stage adapt made: `fit/`, `text/`."""
        return self.folder / "challenger"

    @property
    def verdict(self) -> Path:
        """What stage judge found."""
        return self.folder / "verdict.json"

    @property
    def picture(self) -> Path:
        """A query case as champion and challenger outline it."""
        return self.folder / "verdict.png"

    @property
    def state(self) -> Path:
        """What the last finished run had seen; written last."""
        return self.folder / "state.json"
