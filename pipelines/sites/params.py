"""The section `service` of params.yaml: which sites are served, from where their cases come, and what a new model has to show."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from pipelines.section import Section

SITE_NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"  # a folder, a registered model and a deployment are called so


class Roles(Section):
    """What each new labelled patient of a site is for. A patient keeps the role that it was given first."""

    support: float = Field(0.4, gt=0, description="share of patients to learn from")
    calibration: float = Field(0.2, ge=0, description="share that sets the temperature")
    query: float = Field(0.4, gt=0, description="share on which models are compared")
    most_support: int = Field(16, ge=1, description="beyond these, patients are calibration and query cases")


class Adapt(Section):
    """How the next model of a site is made."""

    system: str = "semi"
    params: dict = Field(default_factory=dict, description="of the system, as in experiments")
    rehearsal: int = Field(8, ge=0, description="support cases of every earlier site that are learned from again (source cases)")
    seed: int = Field(0, ge=0)


class Gate(Section):
    """What a challenger has to show on the query cases before it may replace the champion."""

    margin: float = Field(0.0, description="the lower end of the paired interval of Dice, challenger minus champion, has to lie above this")
    level: float = Field(0.9, gt=0.5, lt=1, description="of that interval")
    ece_margin: float = Field(0.02, ge=0, description="the mean calibration error in the foreground band may grow by this much")
    earlier_margin: float = Field(0.03, ge=0, description="no earlier site's mean Dice may fall by more")
    min_query_cases: int = Field(2, ge=1)
    min_calibration_cases: int = Field(1, ge=0)
    approval: bool = Field(False, description="a person decides in the Prefect UI after the gate has passed a challenger")
    approval_hours: float = Field(72.0, gt=0, description="without an answer for so long, the champion stays")


class Quality(Section):
    """When a prediction is withheld."""

    outlier_p: float = Field(0.01, gt=0, lt=1, description="a study less typical of the site than this is out of distribution")
    required: list[str] = Field(default_factory=list, description="modalities without which nothing is predicted")
    smallest_ml: float = Field(0.0, ge=0)
    largest_ml: float = Field(600.0, gt=0)


class Drift(Section):
    """When a site's new cases count as different from those that its champion was made with."""

    recent: int = Field(10, ge=2, description="latest cases that are compared with the earlier ones")
    p: float = Field(0.01, gt=0, lt=1)
    permutations: int = Field(999, ge=99)


class Schedule(Section):
    """When a flow starts by itself: cron or every so many seconds."""

    cron: str | None = None
    every_s: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_of(self):
        if (self.cron is None) == (self.every_s is None):
            raise ValueError("give exactly one of 'cron' and 'every_s'")
        return self


class Site(Section):
    """Where the cases of one site come from, and when to look."""

    folder: Path | None = Field(None, description="a watched folder of DICOM studies; default: <root>/<site>/inbox")
    pacs: Path | None = Field(None, description="a file like conf/pacs/example.yaml: studies are fetched from there into the inbox")
    settle_s: float = Field(30.0, ge=0, description="a watched folder is read when no file in it is younger: copying takes its time")
    checked: list[str] = Field(default_factory=list, description="patients (pseudonyms) whose labels a person has confirmed after the gate asked to")
    adapt: Schedule | None = None
    drift: Schedule | None = None

    @model_validator(mode="after")
    def _one_source(self):
        if self.folder is not None and self.pacs is not None:
            raise ValueError("give 'folder' or 'pacs', not both: what is fetched from a PACS lies in the site's own inbox")
        return self


class Service(Section):
    """Everything about sites that are adapted to as their cases arrive."""

    root: Path = Field(Path("sites"), description="one workspace a site; seen from the project's folder")
    cohort: str = Field("phantom", description="whose labels, ingest rules and key all sites share: of params.yaml or conf/cohort/")
    adapt: Adapt = Adapt()
    roles: Roles = Roles()
    gate: Gate = Gate()
    quality: Quality = Quality()
    drift: Drift = Drift()
    janitor: Schedule = Schedule(every_s=900)
    retries: int = Field(2, ge=0)
    timeout_s: float = Field(4 * 3600.0, gt=0)
    sites: dict[str, Site] = Field(default_factory=dict)

    @field_validator("sites")
    @classmethod
    def _names(cls, sites: dict[str, Site]) -> dict[str, Site]:
        import re

        for name in sites:
            if not re.match(SITE_NAME, name):
                raise ValueError(f"{name!r} is not a site's name; use small letters, digits and '-', as in 'site-b'")
        return sites
