"""The worked example of docs/adding-a-system.md is taken from the page, registered, and run through train and evaluate."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

import pandas as pd
from tiny_stages import cases_at, stage_inputs, write_stages

from pipelines import systems
from pipelines.evaluate.stage import evaluate, manifest_hash
from pipelines.train.fit import fit_experiment
from pipelines.train.inputs import load_task

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-system.md"
BLOCK = re.compile(r"```python\n# (?P<path>pipelines/systems/gaussian/\w+\.py)\n(?P<code>.*?)```", re.DOTALL)


def test_the_example_of_the_page_runs_through_the_stages(tmp_path, monkeypatch):
    blocks = {match["path"]: match["code"] for match in BLOCK.finditer(PAGE.read_text())}
    assert set(blocks) == {f"pipelines/systems/gaussian/{name}.py" for name in ("params", "system")}
    assert sum(len(code.strip().splitlines()) for code in blocks.values()) <= 75
    package = tmp_path / "gaussian_of_the_page"
    package.mkdir()
    for path, code in blocks.items():
        (package / Path(path).name).write_text(code)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    monkeypatch.setitem(systems.REGISTRY, "gaussian", package.name)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    folder = write_stages(tmp_path / "cohort", cases_at(north=4), protocol={"seeds": [0]}, cohort={"targets": "all"},
                          experiments={"gaussian-2": {"system": "gaussian", "shots": 2, "params": {"smallest_sd": 0.2}}})
    inputs = stage_inputs(folder)
    fit_experiment("gaussian-2", out=folder / "models", jobs=1, **inputs)
    task, cases = load_task(**inputs)
    cohort = manifest_hash(folder / "resampled")
    evaluate("gaussian-2", folder / "models", folder / "out", task=task, cases=cases, params=inputs["params"], cohort=cohort)
    rows = pd.read_csv(folder / "out" / "cases.csv")
    assert len(rows) >= 2
    assert rows.dice.mean() > 0.5
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        monkeypatch.delitem(sys.modules, name)
