from __future__ import annotations

from pipelines.params import Section


class Params(Section):
    pass
