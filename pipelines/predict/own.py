"""How a result is known when it comes back: what a model said must not become the truth that the next one learns."""

from __future__ import annotations

#: For `ingest.rules`, before all others, wherever studies come back from an archive. The words are those that de-identification leaves of the
#: descriptions of `seg.SERIES`.
OWN_RULE = {"name": "own-prediction", "skip": "a prediction, which is no truth", "description": r"^(semiflow )?research (segmentation )?map",
            "sop_class": ["Segmentation Storage", "Parametric Map Storage"]}
