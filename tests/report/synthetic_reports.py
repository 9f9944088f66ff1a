"""Evaluated experiments made without training: systems whose probabilities are a blurred, displaced truth, measured by the real evaluate code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from scipy.ndimage import gaussian_filter

from pipelines.cohort import Case
from pipelines.evaluate.cases import Job, measure_fit
from pipelines.evaluate.stage import merge
from pipelines.outputs import write_json
from pipelines.params import Params, load_params

SPACING = (5.0, 1.5, 1.5)
LABELS = ("tumour-core", "oedema")
#: How many pixels a system's contour is off, per system: fewer shots are worse.
ERROR = {"semi": 1.0, "random-forest": 2.2, "unet": 3.0}
TITLES = {"semi": "SEMI", "random-forest": "random forest", "unet": "U-Net"}


def make_case(site: str, number: int, shape: tuple[int, int, int] = (12, 56, 48)) -> Case:
    """A head with a two-part lesion, T2-like and T1-like images; every third case lacks one, every fifth has no core."""
    rng = np.random.default_rng([ord(letter) for letter in site] + [number])
    z, y, x = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    centre = np.array(shape) / 2

    def ball(middle, radii):
        return sum(((axis - m) / r) ** 2 for axis, m, r in zip((z, y, x), middle, radii, strict=True)) < 1

    head = ball(centre, centre * [1.1, 0.92, 0.88])
    middle = centre + rng.uniform(-1, 1, 3) * [1, 8, 6]
    radius = rng.uniform(7, 11)
    wobble = gaussian_filter(rng.normal(size=shape), 4) * 40
    oedema = (((z - middle[0]) * 2.4) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2 < (radius + wobble) ** 2) & head
    core = (((z - middle[0]) * 2.4) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2 < (radius * 0.5 + wobble) ** 2) & head
    truth = oedema * 2
    truth[core] = 1 if number % 5 else 2
    texture = gaussian_filter(rng.normal(size=shape), 1.2) * 1.5
    images = {"FLAIR": head * (1.4 * (truth == 2) + 0.5 * (truth == 1) + texture),
              "ceT1w": head * (1.6 * (truth == 1) - 0.4 * (truth == 2) + texture)}
    if number % 3 == 0:
        del images["ceT1w"]
    return Case(f"{site}{number:02d}", "1", site, SPACING, 2, {name: image.astype(np.float32) for name, image in images.items()},
                head.astype(np.uint8), truth.astype(np.uint8))


@dataclass
class Displaced:
    """A trained system's stand-in with a known quality: the truth, displaced and blurred; temperature 2 of overconfident logits."""

    error: float
    record: dict

    def raw(self, case: Case) -> np.ndarray:
        rng = np.random.default_rng([self.record["seed"], *case.id.encode()])
        shift = rng.normal(scale=self.error, size=2).round().astype(int)
        truth = np.roll(case.label(), tuple(shift), axis=(1, 2))
        channels = [gaussian_filter((truth == value).astype(float), (0.4, self.error, self.error)) for value in range(1 + len(LABELS))]
        noise = gaussian_filter(rng.normal(size=(3, *truth.shape)), (0, 0.5, 2, 2)) * 8
        logits = 6 * np.log(np.maximum(channels, 1e-4)) / 2 + noise
        return self._softmax(logits)

    def calibrated(self, raw: np.ndarray) -> np.ndarray:
        return self._softmax(np.log(np.maximum(raw, 1e-9)) / self.record["temperature"])

    @staticmethod
    def _softmax(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits - logits.max(axis=0))
        return (powers / powers.sum(axis=0)).astype(np.float32)


def small_params(folder: Path, name: str = "phantom", **changes) -> Path:
    """A params.yaml: the project's, with two seeds, few resamples and the changes given ("section" or "section.key" -> value)."""
    content = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    content["cohort"]["name"] = name
    content["protocol"]["seeds"] = [0, 1]
    content["evaluate"]["bootstrap"] = 200
    for key, value in changes.items():
        section, _, entry = key.partition(".")
        if entry:
            content[section][entry] = value
        else:
            content[section] = value
    path = folder / "params.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def write_experiment(folder: Path, name: str, params: Params, sites=("alpha", "beta"), subjects: int = 5) -> None:
    """One evaluated experiment below `folder`, as the evaluate stage writes it."""
    experiment, out = params.experiments[name], folder / params.cohort.name / name
    parts = []
    for site in sites:
        cases = [make_case(site, number) for number in range(1, subjects + 1)]
        for seed in params.protocol.seeds:
            record = {"seed": seed, "site": site, "train_seconds": 2.5 * experiment.shots, "calibration_from": "site", "temperature": 2.0}
            facts = {"cohort": params.cohort.name, "experiment": name, "system": experiment.system, "shots": experiment.shots,
                     "seed": seed, "site": site}
            query = [case for index, case in enumerate(cases) if index != seed % subjects]
            job = Job(out, facts, query, overlays=seed == params.protocol.seeds[0])
            parts.append(out / "parts" / job.name)
            parts[-1].mkdir(parents=True, exist_ok=True)
            measure_fit(Displaced(ERROR[experiment.system] / experiment.shots ** 0.3, record), job, LABELS, params.evaluate, parts[-1])
    merge(out, parts)
    labelled = len(sites) * subjects
    write_json(out / "summary.json", {
        "cohort": params.cohort.name, "caveat": params.cohort.caveat, "disease": params.cohort.disease, "split_by": params.cohort.split_by,
        "labels": [{"name": label.name, "text": label.text} for label in params.cohort.labels], "experiment": name, "system": experiment.system,
        "title": TITLES[experiment.system], "shots": experiment.shots, "params": {}, "protocol": "within", "modalities": ["FLAIR", "ceT1w"],
        "sites": sorted(sites), "seeds": params.protocol.seeds, "fits": len(parts), "cases": labelled, "labelled_cases": labelled,
        "backbone": {"name": "atlas:models/atlas", "fingerprint": "0123456789abcdef" * 4}, "calibration_from": ["site"],
        "cost": {"train_seconds": 2.5 * experiment.shots, "model_bytes": 412_000}, "evaluate": params.evaluate.model_dump(),
    })


def write_cohort(folder: Path, params_file: Path, **options) -> Params:
    """Every experiment that a params.yaml lists, below `folder`."""
    params = load_params(params_file)
    for name in params.experiments:
        write_experiment(folder, name, params, **options)
    assert json.loads((folder / params.cohort.name / next(iter(params.experiments)) / "summary.json").read_text())
    return params
