"""An MLflow store whose tables are there already: migrating a fresh database takes seconds, copying one does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.tiny_kept import kept


def fresh_store(project: Path) -> None:
    """Put an empty store where a project's runs go, `mlruns/mlflow.db`."""
    target = Path(project) / "mlruns" / "mlflow.db"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept("mlflow", _migrate) / "mlflow.db", target)


def _migrate(folder: Path) -> None:
    """By a process of its own: MLflow remembers stores."""
    code = f"import tasks, mlflow; mlflow.MlflowClient('sqlite:///{folder / 'mlflow.db'}').search_experiments()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL)
