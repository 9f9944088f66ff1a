"""A fit read back: the system as it was trained, with the temperature of its calibration cases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.errors import DataError
from pipelines.systems import create, params_model
from pipelines.systems.protocol import CaseClassifier, FewShotSystem, Task
from pipelines.train.calibrate import apply_temperature

RECORD = "fit.json"


@dataclass(frozen=True)
class Fitted:
    """A trained system and its temperature. `record` is the content of `fit.json`."""

    system: FewShotSystem | CaseClassifier
    task: Task
    record: Mapping[str, object]

    @property
    def temperature(self) -> float:
        return float(self.record["temperature"])

    @property
    def uses_tokens(self) -> bool:
        """Whether a case needs cached tokens (`Case.tokens`) to be predicted."""
        return self.system.uses_tokens

    def raw(self, case: Case) -> np.ndarray:
        """Probabilities before temperature scaling, `(1 + K, S, H, W)` float32, or `(outcomes,)` of a system that answers the whole case."""
        return self.system.predict(self.task, case)

    def calibrated(self, raw: np.ndarray) -> np.ndarray:
        """Probabilities of `raw` at the fit's temperature."""
        return apply_temperature(raw, self.temperature)

    def predict(self, case: Case) -> np.ndarray:
        """Calibrated probabilities `(1 + K, S, H, W)` float32, channel 0 being background, or `(outcomes,)`."""
        return self.calibrated(self.raw(case))


def load_fitted(folder: Path, task: Task) -> Fitted:
    """Read the fit in `folder` (`<models>/<site>/seed-<s>`). Raises `DataError` where it is absent or was trained for other labels."""
    path = Path(folder) / RECORD
    if not path.is_file():
        raise DataError(f"{path} does not exist; run the train stage of this experiment")
    record = json.loads(path.read_text())
    if tuple(record["labels"]) != task.labels:
        raise DataError(f"{path} was trained for labels {', '.join(record['labels'])}, params.yaml has {', '.join(task.labels)}; train it again")
    if tuple(record.get("outcomes", task.outcomes)) != task.outcomes:
        raise DataError(f"{path} was trained for outcomes {', '.join(record['outcomes'])}, params.yaml has {', '.join(task.outcomes)}; "
                        "train it again")
    system = create(record["system"], params_model(record["system"])(**record["params"]))
    system.load(Path(folder))
    return Fitted(system, task, record)


def fits_of(models: Path) -> list[Path]:
    """The fit folders of one experiment, sorted by site and seed."""
    found = [path.parent for path in Path(models).glob(f"*/seed-*/{RECORD}")]
    return sorted(found, key=lambda folder: (folder.parent.name, int(folder.name.removeprefix("seed-"))))
