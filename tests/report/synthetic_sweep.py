"""A sweep's folders with known effects: every arm's Dice is a case's difficulty plus what the arm, its shots and chance add."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from synthetic_reports import make_case

from pipelines.evaluate.overlay import make_overlay, write_overlays
from pipelines.outputs import write_json
from pipelines.params import Params

MODALITIES = ("FLAIR", "T1w", "ceT1w")
CONDITIONS = (("within", 1), ("within", 4), ("transfer", 0), ("pooled", 8))


@dataclass(frozen=True)
class Arm:
    name: str
    role: str
    quality: float  # what it adds to Dice
    system: str = ""
    title: str = ""
    protocols: tuple[str, ...] = ("within", "transfer", "pooled")

    @property
    def of_system(self) -> str:
        return self.system or self.name


ARMS = (Arm("semi", "headline", 0.12, title="SEMI"), Arm("random-forest", "baseline", 0.0, title="random forest"),
        Arm("unet", "baseline", -0.1, title="U-Net"), Arm("unet-source", "baseline", 0.05, title="U-Net from source", protocols=("transfer",)),
        Arm("semi-one-hot", "ablation", 0.119, "semi", "SEMI"), Arm("semi-shuffled", "control", 0.02, "semi", "SEMI"))


def write_sweep(folder: Path, params: Params, arms: Sequence[Arm] = ARMS, *, conditions=CONDITIONS, sites=("alpha", "beta"), subjects: int = 6,
                seeds=(0, 1), drawn: Sequence[str] = ("semi", "random-forest")) -> Path:
    """`<folder>/<cohort>/sweep/` as `python -m pipelines.sweep` writes it; overlays hold images for the arms in `drawn` only."""
    out = folder / params.cohort.name / "sweep"
    missing, cost = [], []
    for arm in arms:
        for protocol, shots in conditions:
            if protocol not in arm.protocols:
                continue
            name = f"{arm.name}-{shots}" + ("" if protocol == "within" else f"-{protocol}")
            cases = case_rows(arm, protocol, shots, name=name, params=params, sites=sites, subjects=subjects, seeds=seeds)
            write_experiment(out / name, arm, cases, params, drawn=arm.name in drawn)
            fits = cases.drop_duplicates(["site", "seed"])
            cost += [{"arm": arm.name, "shots": shots, "protocol": protocol, "site": row.site, "seed": row.seed, "train_seconds": row.train_seconds,
                      "predict_seconds": row.predict_seconds, "peak_mb": 700 + 10 * shots, "parameters": 52_000, "model_bytes": 210_000}
                     for row in fits.itertuples()]
            if (protocol, shots) == ("within", 4):
                missing += missing_rows(arm, cases)
    pd.DataFrame(cost).to_csv(out / "cost.csv", index=False)
    pd.DataFrame(missing).to_csv(out / "missing.csv", index=False)
    return out


def case_rows(arm: Arm, protocol: str, shots: int, *, name: str, params: Params, sites, subjects: int, seeds) -> pd.DataFrame:
    noise, labels = np.random.default_rng([shots, *name.encode()]), [label.name for label in params.cohort.labels]
    rows = []
    for site in sites:
        for number in range(1, subjects + 1):
            difficulty = np.random.default_rng([number, *site.encode()])
            ease, volume = difficulty.normal(0, 0.08), difficulty.uniform(5, 80)
            for seed in seeds:
                if number == 1 + seed % subjects:  # labelled in this draw
                    continue
                for label in labels:
                    dice = float(np.clip(0.55 + arm.quality + 0.05 * np.log2(1 + shots) + ease + noise.normal(0, 0.02), 0, 1))
                    ece = abs(0.12 - arm.quality / 2 + noise.normal(0, 0.01))
                    ideal = (1 + dice) / 2
                    rows.append({
                        "cohort": params.cohort.name, "experiment": name, "system": arm.of_system, "shots": shots, "seed": seed,
                        "site": "all" if protocol == "pooled" else site, "case": f"sub-{site}{number:02d}_ses-1", "label": label, "dice": dice,
                        "hd95_mm": 30 * (1 - dice), "nsd_2mm": dice * 0.9, "ece": ece, "brier": ece / 2, "nll": ece * 3,
                        "false_positive_ml": 3.0, "ece_brain": ece / 5, "ace": ece * 0.9, "truth_ml": volume, "predicted_ml": volume * 1.1,
                        "ece_unscaled": ece * 1.5, "train_seconds": 2.0 + 3 * shots, "calibration_from": "site", "temperature": 1.5,
                        "predict_seconds": 0.4, "n_modalities": 3, "arm": arm.name, "protocol": protocol, "case_site": site, "lesion_f1": dice,
                        "ace_brain": ece / 6, "brier_brain": ece / 7, "nll_brain": ece / 3, "uncertainty_auroc": 0.8, "retention_auc": ideal - 0.02,
                        "retention_auc_random": dice, "retention_auc_ideal": ideal})
    return pd.DataFrame(rows)


def write_experiment(out: Path, arm: Arm, cases: pd.DataFrame, params: Params, *, drawn: bool) -> None:
    out.mkdir(parents=True)
    cases.to_csv(out / "cases.csv", index=False)
    first, facts = cases.iloc[0], ["cohort", "experiment", "system", "shots"]
    bins = [{**first[facts], "site": site, "label": label, "region": region, "bin": index, "confidence": (index + 0.5) / 15,
             "accuracy": min(1.0, (index + 0.5) / 15 * (0.8 + arm.quality)), "count": 4000 // (1 + index)}
            for site in sorted(cases.site.unique()) for label in cases.label.unique() for region in ("band", "brain") for index in range(15)]
    pd.DataFrame(bins).to_csv(out / "reliability.csv", index=False)
    keys = ["experiment", "site", "seed", "label", "case"]
    risk = [{**row[keys], "alpha": alpha, "n_calibration": 4, "threshold": 0.3, "fnr": alpha * 0.8 * row.dice, "size_ratio": 1.4,
             "refused": alpha < 0.2} for _, row in cases.iterrows() for alpha in (0.1, 0.2)]
    pd.DataFrame(risk).assign(fnr=lambda table: table.fnr.where(~table.refused)).to_csv(out / "conformal.csv", index=False)
    kept = [{**row[keys], "retained": share, "dice": row.dice + (1 - share) * (1 - row.dice)} for _, row in cases.iterrows()
            for share in np.linspace(0, 1, 6).round(2)]
    pd.DataFrame(kept).to_csv(out / "retention.csv", index=False)
    write_overlays(out / "overlays", [])
    if drawn:
        overlays(out / "overlays", cases, len(params.cohort.labels))
    sites, seeds = sorted(cases.site.unique()), sorted(int(seed) for seed in cases.seed.unique())
    write_json(out / "summary.json", {
        "cohort": params.cohort.name, "caveat": params.cohort.caveat, "disease": params.cohort.disease, "split_by": params.cohort.split_by,
        "labels": [{"name": label.name, "text": label.text} for label in params.cohort.labels], "experiment": out.name, "system": arm.of_system,
        "title": arm.title or arm.name, "shots": int(first.shots), "params": {"text": "one-hot"} if "one-hot" in arm.name else {},
        "protocol": first.protocol, "modalities": list(MODALITIES), "sites": sites, "seeds": seeds, "fits": len(sites) * len(seeds), "cases": 12,
        "labelled_cases": 12, "backbone": {"name": "atlas:models/atlas", "fingerprint": "0123456789abcdef" * 4}, "calibration_from": ["site"],
        "cost": {"train_seconds": float(cases.train_seconds.mean()), "model_bytes": 210_000}, "evaluate": params.evaluate.model_dump(),
        "arm": arm.name, "role": arm.role, "sweep": True})


def overlays(folder: Path, cases: pd.DataFrame, labels: int) -> None:
    """One kept slice a site, the same case for every system."""
    index = []
    for site in sorted(cases.site.unique()):
        case = make_case(site, 2)
        truth = case.label()
        probability = np.stack([gaussian_filter((truth == value).astype(np.float32), (0, 2, 2)) for value in range(1 + labels)])
        facts = {"site": site, "seed": 0, "dice": dict.fromkeys(cases.label.unique(), 0.7), "mean_dice": 0.7, "truth_ml": 20.0}
        write_overlays(folder, [make_overlay(case, truth, probability.argmax(axis=0), probability, facts)])
        index += json.loads((folder / "index.json").read_text())
    write_json(folder / "index.json", index)


def missing_rows(arm: Arm, cases: pd.DataFrame) -> list[dict]:
    """Every subset of three modalities: each one that is absent costs 0.1 of Dice."""
    rows = []
    for row in cases.itertuples():
        for count in range(1, len(MODALITIES) + 1):
            for subset in combinations(MODALITIES, count):
                rows.append({"arm": arm.name, "system": arm.of_system, "protocol": row.protocol, "shots": row.shots, "site": row.site,
                             "seed": row.seed, "case": row.case, "label": row.label, "modalities": "+".join(subset), "n_modalities": count,
                             "dice": row.dice - 0.1 * (len(MODALITIES) - count), "ece": row.ece})
    return rows
