"""The slice with most of the segmentation, over each modality, and how sure the model is: to be seen before anything is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.cohort import Case
from pipelines.evaluate.overlay import make_overlay


def draw_overlay(case: Case, probabilities: np.ndarray, labels: tuple[str, ...], path: Path) -> None:
    """Write a PNG of a case and its probabilities `(1 + labels, S, H, W)`. It shows no name and no date."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.lines import Line2D

    from pipelines.report.charts import save
    from pipelines.report.pictures import DARK, LIGHT, LINES, PREDICTION, bare, draw, order, panels

    segmented = probabilities.argmax(axis=0)
    shown = segmented if segmented.any() else case.foreground()  # nothing found: the largest slice of the head
    overlay = make_overlay(case, np.zeros_like(shown), shown, probabilities, {})
    arrays, facts = dict(overlay.arrays), overlay.facts
    if not segmented.any():
        arrays["predicted"] = np.zeros_like(arrays["predicted"])
    names = order(facts["modalities"])
    height, width = arrays["predicted"].shape
    aspect = facts["pixel_mm"][0] / facts["pixel_mm"][1]
    figure, axes = panels(1, len(names) + 2, ratio=aspect * height / width)
    for axis, name in zip(axes[0], names, strict=False):
        draw(axis, arrays, facts, name)
        axis.set_title(name, color=LIGHT, fontsize=9)
    for axis, name in zip(axes[0][-2:], ("probability", "uncertainty"), strict=True):
        values = arrays[name].astype(np.float32)
        axis.imshow(values.sum(axis=0) if values.ndim > 2 else values, cmap="magma", vmin=0, vmax=1, aspect=aspect)
        bare(axis)
        axis.set_title(name, color=LIGHT, fontsize=9)
    handles = [Line2D([], [], color=PREDICTION, linewidth=2, linestyle=LINES[index % len(LINES)], label=label) for index, label in enumerate(labels)]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), labelcolor=LIGHT, fontsize=9, facecolor=DARK)
    save(figure, path, dpi=120)
