"""The base of every part of params.yaml. Apart from pipelines/params.py, so that parts can be declared in files of their own."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of params.yaml. Unknown keys are errors: a typo must not become a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)
