"""The charts of the report: learning curves, reliability diagrams, sites. Plain matplotlib, readable in print and without colour vision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.report.collect import Cohort
from pipelines.report.statistics import units

#: Okabe and Ito's palette (2008), told apart with every common colour vision; the headline system takes the first.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A7A7A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT = "#22303c", "#9aa5ae"
STYLE = {
    "font.size": 10, "font.family": "DejaVu Sans", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "xtick.color": INK,
    "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.grid": True, "grid.color": "#e6eaed", "grid.linewidth": 0.8, "axes.axisbelow": True,
    "legend.frameon": False, "figure.facecolor": "white", "savefig.facecolor": "white", "figure.constrained_layout.use": True,
}
#: Of bins with fewer voxels than this share of all, the accuracy is noise; they are not drawn.
MIN_BIN_SHARE = 5e-4


def subplots(*args, **kwargs):
    """`plt.subplots` without a display, in the report's style."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({**mpl.rcParamsDefault, "backend": "Agg", **STYLE})
    return plt.subplots(*args, **kwargs)


def save(figure, path: Path, dpi: int = 150) -> None:
    """Write a PNG that carries no date and no version, so that equal figures are equal bytes."""
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, facecolor=figure.get_facecolor(), metadata={"Software": None})
    plt.close(figure)


def colours(cohort: Cohort) -> dict[str, str]:
    return {system: PALETTE[index % len(PALETTE)] for index, system in enumerate(cohort.systems())}


def markers(cohort: Cohort) -> dict[str, str]:
    return {system: MARKERS[index % len(MARKERS)] for index, system in enumerate(cohort.systems())}


def learning_curve_rows(cohorts: Sequence[Cohort], metrics: Mapping[str, dict]) -> pd.DataFrame:
    """plots/learning_curve.csv: mean Dice with its interval over shots."""
    rows = [{"shots": experiment["shots"], "cohort": cohort.name, "system": experiment["system"], "label": label,
             **dict(zip(("dice", "low", "high"), (values["dice"][key] for key in ("mean", "low", "high")), strict=True))}
            for cohort in cohorts for experiment in metrics[cohort.name]["experiments"].values() for label, values in experiment["labels"].items()]
    return pd.DataFrame(rows).sort_values(["cohort", "system", "label", "shots"]).reset_index(drop=True)


def reliability_rows(cohorts: Sequence[Cohort]) -> pd.DataFrame:
    """plots/reliability.csv: the bins inside the foreground band, over sites and draws."""
    tables = []
    for cohort in cohorts:
        band = cohort.reliability[(cohort.reliability.region == "band") & (cohort.reliability["count"] > 0)].copy()
        for name in ("confidence", "accuracy"):
            band[name] *= band["count"]
        summed = band.groupby(["cohort", "system", "shots", "label", "bin"])[["confidence", "accuracy", "count"]].sum().reset_index()
        for name in ("confidence", "accuracy"):
            summed[name] /= summed["count"]
        tables.append(summed)
    return pd.concat(tables, ignore_index=True)[["confidence", "accuracy", "count", "cohort", "system", "shots", "label", "bin"]]


def learning_curve(cohort: Cohort, rows: pd.DataFrame, path: Path) -> None:
    """Dice over labelled cases, a panel a label, with intervals and the patch ceiling."""
    figure, axes = subplots(1, len(cohort.labels), figsize=(4.6 * len(cohort.labels), 3.6), squeeze=False, sharey=True)
    systems, shots = cohort.systems(), cohort.shots()
    for axis, label in zip(axes[0], cohort.labels, strict=True):
        for index, system in enumerate(systems):
            line = rows[(rows.cohort == cohort.name) & (rows.system == system) & (rows.label == label) & rows.dice.notna()]
            if line.empty:
                continue
            place = np.log2(line.shots.to_numpy(float)) + 0.05 * (index - (len(systems) - 1) / 2)  # side by side, so that bars do not hide
            error = np.stack([line.dice - line.low.fillna(line.dice), line.high.fillna(line.dice) - line.dice]).clip(min=0)
            axis.errorbar(place, line.dice, yerr=error, color=colours(cohort)[system], marker=markers(cohort)[system], capsize=3, linewidth=1.6,
                          markersize=6, label=cohort.title(system))
        ceiling = cohort.patch_ceiling.get(label)
        if ceiling is not None:
            axis.axhline(ceiling, color=FAINT, linestyle=(0, (2, 3)))
            axis.annotate(f"patch ceiling {ceiling:.2f}", (0.5, ceiling), xycoords=("axes fraction", "data"), ha="center", va="center", fontsize=8,
                          color="#5b6770", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})
        axis.set(title=label, xlabel="labelled cases of the site (shots)", ylim=(0, 1.03), xticks=np.log2(shots), xticklabels=shots,
                 xlim=(np.log2(shots[0]) - 0.4, np.log2(shots[-1]) + 0.4))
    axes[0, 0].set_ylabel("Dice")
    _legend(figure, axes[0, 0])
    save(figure, path)


def _legend(figure, axis) -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=len(names))


def draw_reliability(axis, share_axis, cohort: Cohort, rows: pd.DataFrame) -> None:
    """One reliability diagram: observed share over stated probability, and below it how many voxels each bin holds."""
    axis.plot([0, 1], [0, 1], color=FAINT, linestyle=(0, (2, 3)), linewidth=1.2)
    axis.annotate("perfect", (0.9, 0.9), rotation=45, rotation_mode="anchor", ha="center", va="bottom", fontsize=8, color="#5b6770")
    for system in cohort.systems():
        line = rows[rows.system == system].sort_values("bin")
        drawn = line[line["count"] >= MIN_BIN_SHARE * line["count"].sum()]
        axis.plot(drawn.confidence, drawn.accuracy, color=colours(cohort)[system], marker=markers(cohort)[system], markersize=4.5, linewidth=1.5,
                  label=cohort.title(system))
        share_axis.step(line.confidence, line["count"] / line["count"].sum(), where="mid", color=colours(cohort)[system], linewidth=1.2)
    axis.set(xlim=(0, 1), ylim=(0, 1), ylabel="observed share")
    axis.tick_params(labelbottom=False)
    share_axis.set(xlim=(0, 1), yscale="log", xlabel="predicted probability", ylabel="voxels")
    share_axis.yaxis.set_major_formatter("{x:.0%}")
    share_axis.minorticks_off()


def reliability(cohort: Cohort, rows: pd.DataFrame, path: Path) -> None:
    """Reliability diagrams at the headline's largest number of shots, a column a label."""
    count = len(cohort.labels)
    figure, axes = subplots(2, count, figsize=(4.6 * count, 4.9), squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": [3.4, 1]})
    for column, label in enumerate(cohort.labels):
        chosen = rows[(rows.cohort == cohort.name) & (rows.label == label) & (rows.shots == cohort.best_shots())]
        draw_reliability(axes[0, column], axes[1, column], cohort, chosen)
        axes[0, column].set_title(label)
    _legend(figure, axes[0, 0])
    save(figure, path)


def sites(cohort: Cohort, path: Path) -> None:
    """Every query case of every site as a dot (its mean over draws), the mean of the site as a bar, a panel a label."""
    cases = cohort.cases[cohort.cases.shots == cohort.best_shots()]
    names, systems = sorted(cases.site.unique()), cohort.systems()
    figure, axes = subplots(1, len(cohort.labels), figsize=(4.6 * len(cohort.labels), 0.9 + 0.72 * len(names)), squeeze=False, sharey=True)
    for axis, label in zip(axes[0], cohort.labels, strict=True):
        for row, site in enumerate(names):
            for index, system in enumerate(systems):
                part = cases[(cases.site == site) & (cases.system == system) & (cases.label == label)]
                values = part.groupby(units(part, str(cohort.any_summary["split_by"])))["dice"].mean().dropna()
                height = row + 0.24 * (index - (len(systems) - 1) / 2)
                axis.plot(values, np.full(len(values), height), linestyle="", marker=markers(cohort)[system], markersize=4.5, alpha=0.55,
                          markeredgewidth=0, color=colours(cohort)[system], label=cohort.title(system) if row == 0 else None)
                if len(values):
                    axis.plot([values.mean()] * 2, [height - 0.1, height + 0.1], color=colours(cohort)[system], linewidth=2.6)
        axis.set(title=label, xlabel="Dice", xlim=(-0.02, 1.02), yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.45, -0.55))
        axis.grid(axis="y", visible=False)
    _legend(figure, axes[0, 0])
    save(figure, path)
