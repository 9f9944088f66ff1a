"""One fit of a system that answers whole cases predicts its query cases: the rows of `outcomes.csv`.

What such answers are worth is a matter of many cases together, over all sites: `pipelines.report.classification` measures it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.errors import DataError
from pipelines.systems.protocol import Task
from pipelines.threads import one_thread

if TYPE_CHECKING:
    from pipelines.evaluate.cases import Job

OUTCOMES = "outcomes.csv"


def evaluate_outcomes(job: Job, task: Task, out: Path) -> None:
    """Write `outcomes.csv` of one fit: a row a query case and class, with its score after and before temperature scaling."""
    import pandas as pd

    from pipelines.train.fitted import load_fitted

    with one_thread():
        fitted = load_fitted(job.folder, task)
        own = {name: fitted.record[name] for name in ("train_seconds", "calibration_from", "temperature")}
        rows = []
        for case in job.query:
            started = time.perf_counter()
            raw = fitted.raw(case)
            seconds = round(time.perf_counter() - started, 4)
            if raw.shape != (len(task.outcomes),) or not np.isfinite(raw).all():
                raise DataError(f"{job.facts['system']} (site {job.facts['site']}, seed {job.facts['seed']}) predicted {case.id} as {raw.shape} "
                                f"where {len(task.outcomes)} finite probabilities are needed; train experiment {job.facts['experiment']} again")
            scores = fitted.calibrated(raw)
            facts = {**job.facts, "case": case.id, "case_site": case.site, "outcome": case.outcome}
            measured = {**own, "predict_seconds": seconds, "n_modalities": len(case.images)}
            rows += [{**facts, "class": name, "label": int(case.outcome == name), "score": float(scores[index]), "score_unscaled": float(raw[index]),
                      **measured} for index, name in enumerate(task.outcomes)]
    pd.DataFrame(rows).to_csv(out / OUTCOMES, index=False)
