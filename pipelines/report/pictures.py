"""Slices with the contours of truth and prediction: what the numbers look like on a patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.report.charts import draw_reliability, save, subplots
from pipelines.report.collect import Cohort

#: Bright on grey, and apart for every colour vision: yellow truth, blue-green prediction.
TRUTH, PREDICTION = "#FFD23F", "#27D3F5"
#: One line style a label, the same for truth and prediction.
LINES = ("solid", (0, (3, 1.6)), (0, (1, 1.2)), (0, (5, 1, 1, 1)))
DARK, LIGHT = "#0d1216", "#e8edf0"
ROLES = ("best", "median", "worst")
#: Modalities are shown in this order where a case has them (lesions are seen best on the first); any others follow by name.
PREFERRED = ("FLAIR", "ceT1w", "T2w", "T1w", "PET")
PANEL = 1.9  # inches


def order(modalities: Sequence[str]) -> list[str]:
    """Modalities in the order of display."""
    return sorted(modalities, key=lambda name: (PREFERRED.index(name) if name in PREFERRED else len(PREFERRED), name))


def draw(axis, arrays: Mapping[str, np.ndarray], entry: Mapping, modality: str, width: float = 1.3) -> None:
    """One modality with both contours."""
    aspect = entry["pixel_mm"][0] / entry["pixel_mm"][1]
    axis.imshow(arrays[f"image_{modality}"], cmap="gray", vmin=0, vmax=255, aspect=aspect, interpolation="bilinear")
    for volume, colour in ((arrays["truth"], TRUTH), (arrays["predicted"], PREDICTION)):
        for value in range(1, len(arrays["probability"]) + 1):
            if (volume == value).any():
                axis.contour((volume == value).astype(float), levels=[0.5], colors=[colour], linewidths=width,
                             linestyles=[LINES[(value - 1) % len(LINES)]])
    bare(axis)


def bare(axis, text: str = "") -> None:
    """An axis that is only a dark panel."""
    axis.set(xticks=[], yticks=[], facecolor=DARK)
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    if text:
        axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color="#8b98a1", fontsize=8)


def panels(rows: int, columns: int, ratio: float, below: float = 0.0):
    """Dark panels (height over width `ratio`) in a grid, with room for the legend above all and `below` inches under each."""
    figure, axes = subplots(rows, columns, figsize=(PANEL * columns + 0.5, (PANEL * ratio + below) * rows + 0.6), squeeze=False)
    figure.set_facecolor(DARK)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    return figure, axes


def legend(figure, labels: Sequence[str]) -> None:
    """Colour tells truth from prediction, line style the label."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=TRUTH, linewidth=2, label="truth"), Line2D([], [], color=PREDICTION, linewidth=2, label="prediction")]
    if len(labels) > 1:
        handles += [Line2D([], [], color=LIGHT, linewidth=1.4, linestyle=LINES[index % len(LINES)], label=label)
                    for index, label in enumerate(labels)]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), labelcolor=LIGHT, fontsize=9, facecolor=DARK)


def scores(entry: Mapping, labels: Sequence[str]) -> str:
    """The Dice of each label of a case, in a line."""
    values = [entry["dice"].get(label) for label in labels]
    return "Dice " + " / ".join("–" if value is None else f"{value:.2f}" for value in values)


def pick(cohort: Cohort, experiment: str, site: str, role: str):
    """The overlay of a site that plays a role, or None."""
    for entry, arrays in cohort.overlays(experiment):
        if entry["site"] == site and role in entry["roles"]:
            return entry, arrays
    return None


def extremes(cohort: Cohort, experiment: str, site: str, path: Path) -> bool:
    """Best, median and worst query case of a site, every modality, and the predicted probability. False where there is nothing to draw."""
    return case_rows(cohort, [(role, found) for role in ROLES if (found := pick(cohort, experiment, site, role)) is not None], path)


def medians(cohort: Cohort, experiment: str, path: Path) -> bool:
    """The same for the median case of every site."""
    sites = cohort.summaries[experiment]["sites"]
    return case_rows(cohort, [(site, found) for site in sites if (found := pick(cohort, experiment, site, "median")) is not None], path)


def case_rows(cohort: Cohort, chosen: Sequence[tuple[str, tuple[dict, dict[str, np.ndarray]]]], path: Path) -> bool:
    """A row a case: its name, every modality with contours, the probability of any label."""
    if not chosen:
        return False
    labels, columns = list(cohort.labels), order({name for _, (entry, _) in chosen for name in entry["modalities"]})
    height, width = chosen[0][1][1]["truth"].shape
    row_mm, column_mm = chosen[0][1][0]["pixel_mm"]
    figure, axes = panels(len(chosen), len(columns) + 1, ratio=height * row_mm / (width * column_mm))
    for row, (name, (entry, arrays)) in zip(axes, chosen, strict=True):
        for axis, modality in zip(row, columns, strict=False):
            if modality in entry["modalities"]:
                draw(axis, arrays, entry, modality)
            else:
                bare(axis, "not acquired")
        row[-1].imshow(arrays["probability"].astype(np.float32).sum(axis=0), cmap="magma", vmin=0, vmax=1,
                       aspect=entry["pixel_mm"][0] / entry["pixel_mm"][1])
        bare(row[-1])
        row[0].set_ylabel(f"{name}\n{scores(entry, labels)}", color=LIGHT, fontsize=9)
    for axis, modality in zip(axes[0], [*columns, "probability"], strict=True):
        axis.set_title(modality, color=LIGHT, fontsize=9, loc="center", fontweight="normal")
    legend(figure, labels)
    save(figure, path, dpi=120)
    return True


def side_by_side(cohort: Cohort, shots: int, path: Path) -> bool:
    """The same case of each site, as every system contours it. False where there is nothing to draw."""
    experiments = [(arm, name) for arm in cohort.drawn if (name := cohort.experiment(arm, shots)) is not None]
    rows = []
    for site in cohort.summaries[experiments[0][1]]["sites"]:
        found = [pick(cohort, name, site, "common") for _, name in experiments]
        if found[0] is not None:
            rows.append((site, found))
    if not rows:
        return False
    first = rows[0][1][0]
    height, width = first[1]["truth"].shape
    figure, axes = panels(len(rows), len(experiments), ratio=height * first[0]["pixel_mm"][0] / (width * first[0]["pixel_mm"][1]),
                          below=0.24)
    for line, (site, found) in zip(axes, rows, strict=True):
        for axis, overlay in zip(line, found, strict=True):
            if overlay is None or overlay[0]["case"] != found[0][0]["case"]:
                bare(axis, "another draw")
                continue
            entry, arrays = overlay
            draw(axis, arrays, entry, order(entry["modalities"])[0])
            axis.set_xlabel(scores(entry, list(cohort.labels)), color=LIGHT, fontsize=8)
        line[0].set_ylabel(site, color=LIGHT, fontsize=9)
    for axis, (system, _) in zip(axes[0], experiments, strict=True):
        axis.set_title(cohort.title(system), color=LIGHT, fontsize=10, loc="center")
    legend(figure, list(cohort.labels))
    save(figure, path, dpi=130)
    return True


def overview(cohort: Cohort, reliability: pd.DataFrame, path: Path) -> bool:
    """For the README: one median case of the headline system, and its reliability beside the others'. False where there is nothing to draw."""
    shots = cohort.best_shots()
    experiment = cohort.experiment(cohort.headline, shots)
    found = pick(cohort, experiment, cohort.summaries[experiment]["sites"][0], "median")
    if found is None:
        return False
    entry, arrays = found
    names, label = order(entry["modalities"])[:3], next(iter(cohort.labels))
    figure, _ = subplots(figsize=(12.4, 4.3))
    figure.clear()
    grid = figure.add_gridspec(2, len(names) + 1, width_ratios=[1] * len(names) + [1.15], height_ratios=[3.4, 1])
    for column, name in enumerate(names):
        axis = figure.add_subplot(grid[:, column])
        draw(axis, arrays, entry, name, width=1.6)
        axis.set_title(name, loc="center", fontweight="normal")
        if column == 0:
            axis.set_xlabel(f"yellow: truth, blue: {cohort.title(cohort.headline)}, {shots} labelled case{'s' * (shots > 1)}; "
                            f"{scores(entry, list(cohort.labels))}", loc="left", fontsize=9)
    axis, share = figure.add_subplot(grid[0, -1]), figure.add_subplot(grid[1, -1])
    draw_reliability(axis, share, cohort, cohort.in_focus(reliability[(reliability.cohort == cohort.name) & (reliability.label == label)]))
    axis.set_title(f"Reliability ({label})", fontsize=10)
    axis.legend(fontsize=8, loc="upper left")
    save(figure, path)
    return True
