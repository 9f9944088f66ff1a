"""One query case as both models outline it, for the page of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.evaluate.overlay import make_overlay
from pipelines.outputs import staged_file


def draw_pair(path: Path, case: Case, models: Mapping[str, tuple[np.ndarray, float]], labels: Sequence[str]) -> None:
    """Write a PNG: a panel a model. `models`: name -> predicted label values `(S, H, W)` and Dice. No name of the case is in it."""
    from pipelines.report.charts import save
    from pipelines.report.pictures import LIGHT, draw, legend, order, panels

    modality, truth = order(list(case.images))[0], case.label()
    overlays = {name: make_overlay(case, truth, found, np.eye(1 + len(labels), dtype=np.float32)[found].transpose(3, 0, 1, 2), {})
                for name, (found, _) in models.items()}
    first = next(iter(overlays.values()))
    height, width = first.arrays["truth"].shape
    figure, axes = panels(1, len(models), ratio=height * first.facts["pixel_mm"][0] / (width * first.facts["pixel_mm"][1]))
    for axis, (name, overlay) in zip(axes[0], overlays.items(), strict=True):
        draw(axis, overlay.arrays, overlay.facts, modality)
        axis.set_title(f"{name}, Dice {models[name][1]:.2f}", color=LIGHT, fontsize=9, loc="center", fontweight="normal")
    legend(figure, labels[:1])  # line styles tell the labels apart, and there is no room to say which
    with staged_file(path) as temporary:
        save(figure, temporary, dpi=120)
