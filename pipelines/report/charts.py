"""The charts of the report: learning curves, reliability diagrams, sites. Plain matplotlib, readable in print and without colour vision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.report.collect import Cohort
from pipelines.report.metrics import reported
from pipelines.report.statistics import unit_means
from pipelines.report.versus import OVER_SITES

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
LEGEND_COLUMNS = 4
#: Columns of plots/learning_curve.csv, where nothing was segmented.
CURVE = ("shots", "cohort", "system", "label", "dice", "low", "high", "arm", "protocol")


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
    return {system: PALETTE[index % len(PALETTE)] for index, system in enumerate(cohort.drawn)}


def markers(cohort: Cohort) -> dict[str, str]:
    return {system: MARKERS[index % len(MARKERS)] for index, system in enumerate(cohort.drawn)}


def learning_curve_rows(cohorts: Sequence[Cohort], metrics: Mapping[str, dict]) -> pd.DataFrame:
    """plots/learning_curve.csv: mean Dice over patients with its interval over shots, and the same over sites where there are several."""
    rows = []
    for cohort in cohorts:
        for experiment in reported(metrics[cohort.name]).values():
            for label, values in experiment["labels"].items():
                dice, sites = values["dice"], experiment.get(OVER_SITES, {}).get(label, {}).get("dice", {})
                rows.append({"shots": experiment["shots"], "cohort": cohort.name, "system": experiment["system"], "label": label,
                             "dice": dice["mean"], "low": dice["low"], "high": dice["high"], "arm": experiment["arm"],
                             "protocol": experiment["protocol"], "dice_over_sites": sites.get("mean"), "low_over_sites": sites.get("low"),
                             "high_over_sites": sites.get("high")})
    if not rows:
        return pd.DataFrame(columns=CURVE)
    return pd.DataFrame(rows).sort_values(["cohort", "protocol", "arm", "label", "shots"]).reset_index(drop=True)


def reliability_rows(cohorts: Sequence[Cohort]) -> pd.DataFrame:
    """plots/reliability.csv: the bins inside the foreground band, over sites and draws."""
    tables, keys = [], ["cohort", "system", "shots", "label", "bin", "arm", "protocol"]
    for cohort in cohorts:
        band = cohort.reliability[(cohort.reliability.region == "band") & (cohort.reliability["count"] > 0)].copy()
        for name in ("confidence", "accuracy"):
            band[name] *= band["count"]
        summed = band.groupby(keys)[["confidence", "accuracy", "count"]].sum().reset_index()
        for name in ("confidence", "accuracy"):
            summed[name] /= summed["count"]
        tables.append(summed)
    columns = ["confidence", "accuracy", "count", *keys]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def position(shots: Sequence[int]) -> np.ndarray:
    """Where numbers of shots stand on an axis of doublings; none at all one step before a single one."""
    return np.log2(np.maximum(np.asarray(shots, float), 0.5))


def learning_curve(cohort: Cohort, rows: pd.DataFrame, path: Path) -> None:
    """Dice over labelled cases with intervals and the patch ceiling: a row of panels a label, a column a protocol."""
    protocols = cohort.protocols()
    if len(protocols) == 1:  # labels side by side
        panels = [(protocols[0], label) for label in cohort.labels]
        figure, axes = subplots(1, len(panels), figsize=(4.6 * len(panels), 3.6), squeeze=False, sharey=True)
    else:
        panels = [(protocol, label) for label in cohort.labels for protocol in protocols]
        figure, axes = subplots(len(cohort.labels), len(protocols), squeeze=False, sharey=True,
                                figsize=(4.2 * len(protocols), 3.6 * len(cohort.labels)))
    for axis, (protocol, label) in zip(axes.flat, panels, strict=True):
        _curves(axis, cohort, rows[(rows.cohort == cohort.name) & (rows.protocol == protocol) & (rows.label == label)])
        ceiling = cohort.patch_ceiling.get(label)
        if ceiling is not None:
            axis.axhline(ceiling, color=FAINT, linestyle=(0, (2, 3)))
            axis.annotate(f"patch ceiling {ceiling:.2f}", (0.5, ceiling), xycoords=("axes fraction", "data"), ha="center", va="center", fontsize=8,
                          color="#5b6770", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})
        shots = cohort.shots(protocol)
        axis.set(title=label if len(protocols) == 1 else f"{protocol}: {label}", ylim=(0, 1.03), xticks=position(shots), xticklabels=shots,
                 xlabel="labelled cases of all sites together (shots)" if protocol == "pooled" else "labelled cases of the site (shots)",
                 xlim=(position(shots)[0] - 0.4, position(shots)[-1] + 0.4))
    for axis in axes[:, 0]:
        axis.set_ylabel("Dice")
    _legend(figure, axes.flat)
    save(figure, path)


def _curves(axis, cohort: Cohort, rows: pd.DataFrame) -> None:
    """A line an arm, over sites where the cohort has several."""
    names = ("dice_over_sites", "low_over_sites", "high_over_sites") if cohort.several_sites() else ("dice", "low", "high")
    for index, arm in enumerate(cohort.drawn):
        line = rows[(rows.arm == arm) & rows[names[0]].notna()]
        if line.empty:
            continue
        place = position(line.shots) + 0.05 * (index - (len(cohort.drawn) - 1) / 2)  # side by side, so that bars do not hide
        mean, low, high = (line[name].astype(float) for name in names)
        error = np.stack([mean - low.fillna(mean), high.fillna(mean) - mean]).clip(min=0)
        axis.errorbar(place, mean, yerr=error, color=colours(cohort)[arm], marker=markers(cohort)[arm], capsize=3, linewidth=1.6, markersize=6,
                      label=cohort.title(arm))


def _legend(figure, axes) -> None:
    """One legend for all panels, four names a line, each name once."""
    handles = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=min(len(handles), LEGEND_COLUMNS))


def draw_reliability(axis, share_axis, cohort: Cohort, rows: pd.DataFrame) -> None:
    """One reliability diagram: observed share over stated probability, and below it how many voxels each bin holds."""
    axis.plot([0, 1], [0, 1], color=FAINT, linestyle=(0, (2, 3)), linewidth=1.2)
    axis.annotate("perfect", (0.9, 0.9), rotation=45, rotation_mode="anchor", ha="center", va="bottom", fontsize=8, color="#5b6770")
    for system in cohort.drawn:
        line = rows[rows.arm == system].sort_values("bin")
        if line.empty:
            continue
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
        chosen = cohort.in_focus(rows[(rows.cohort == cohort.name) & (rows.label == label)])
        draw_reliability(axes[0, column], axes[1, column], cohort, chosen)
        axes[0, column].set_title(label)
    _legend(figure, axes[0])
    save(figure, path)


def sites(cohort: Cohort, path: Path) -> None:
    """Every query case of every site as a dot (its mean over draws), the mean of the site as a bar, a panel a label."""
    cases = cohort.in_focus(cohort.cases)
    arms = [arm for arm in cohort.drawn if arm in set(cases.arm)]
    names, step = sorted(cases.case_site.unique()), min(0.24, 0.84 / len(arms))
    figure, axes = subplots(1, len(cohort.labels), figsize=(max(6.4, 4.6 * len(cohort.labels)), 0.9 + max(0.72, 0.17 * len(arms)) * len(names)),
                            squeeze=False, sharey=True)
    for axis, label in zip(axes[0], cohort.labels, strict=True):
        for index, arm in enumerate(arms):
            part = cases[(cases.arm == arm) & (cases.label == label)]
            means = unit_means(part, ["dice"], cohort.split_by)["dice"].dropna()
            for row, site in enumerate(names):
                values = means[means.index.get_level_values("site") == site]
                height = row + step * (index - (len(arms) - 1) / 2)
                axis.plot(values, np.full(len(values), height), linestyle="", marker=markers(cohort)[arm], markersize=4.5, alpha=0.55,
                          markeredgewidth=0, color=colours(cohort)[arm], label=cohort.title(arm) if row == 0 else None)
                if len(values):
                    axis.plot([values.mean()] * 2, [height - 0.42 * step, height + 0.42 * step], color=colours(cohort)[arm], linewidth=2.6)
        axis.set(title=label, xlabel="Dice", xlim=(-0.02, 1.02), yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.45, -0.55))
        axis.grid(axis="y", visible=False)
    _legend(figure, axes[0])
    save(figure, path)


def retention(cohort: Cohort, rows: Sequence[Mapping], path: Path) -> None:
    """Dice over the share of voxels that is left to the system when a reader takes the most uncertain ones first, a panel a label."""
    figure, axes = subplots(1, len(cohort.labels), figsize=(4.6 * len(cohort.labels), 3.4), squeeze=False, sharey=True)
    for axis, label in zip(axes[0], cohort.labels, strict=True):
        for row in sorted((row for row in rows if row["arm"] in cohort.drawn), key=lambda row: cohort.drawn.index(row["arm"])):
            if row["label"] == label:
                axis.plot([1 - share for share in row["retained"]], row["dice"], color=colours(cohort)[row["arm"]],
                          marker=markers(cohort)[row["arm"]], markersize=4.5, linewidth=1.5, label=cohort.title(row["arm"]))
        axis.set(title=label, xlabel="share of voxels given to a reader, most uncertain first", ylim=(None, 1.01))
        axis.xaxis.set_major_formatter("{x:.0%}")
    axes[0, 0].set_ylabel("Dice")
    _legend(figure, axes[0])
    save(figure, path)
