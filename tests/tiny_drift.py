"""A site's workspace in small, with real tokens and a real fit: six cases that its champion was made with, and five that came later."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from tiny_cohort import tiny_case
from tiny_stages import stage_inputs, write_stages

from pipelines.cohort import Case, cases_of, read_manifest, write_manifest
from pipelines.outputs import write_json

OWN, NEW = 6, 5


def blurred(case: Case) -> Case:
    """The same head by a scanner with thicker, noisier pixels."""
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(len(case.subject))
    head = case.brain > 0
    images = {name: ((gaussian_filter(image, (0, 1.5, 1.5)) + 0.6 * generator.normal(size=image.shape)) * head).astype(np.float32)
              for name, image in case.images.items()}
    return replace(case, images=images)


def tiny_site(root: Path, *, shifted: bool, scanner: str = "") -> Path:
    """A workspace whose champion was made with six cases, and to which five others came later."""
    from pipelines.train.inputs import load_task
    from pipelines.train.one import Job, save_fit, train_one
    from pipelines.train.split import Split

    own = [replace(tiny_case(number, "site-b"), subject=f"own{number}") for number in range(OWN)]
    new = [replace(tiny_case(100 + number, "site-b"), subject=f"new{number}") for number in range(NEW)]
    work = write_stages(root / "site-b", [*own, *(map(blurred, new) if shifted else new)], service={"drift": {"recent": 5, "p": 0.02}})
    inputs = stage_inputs(work)
    task, _ = load_task(**inputs)
    (work / "data").mkdir()
    for name in ("resampled", "embeddings", "prompts"):
        (work / name).rename(work / "data" / name)
    if scanner:
        table = read_manifest(work / "data/resampled")
        table["scanner"] = [scanner if subject.startswith("new") else "Old One" for subject in table.subject]
        write_manifest(work / "data/resampled", table)
    from pipelines.embed.cache import token_files

    cases = cases_of(work / "data/resampled", token_files(work / "data/embeddings"))
    chosen = {case.subject: case for case in cases}
    split = Split(tuple(chosen[f"own{number}"] for number in range(3)), (chosen["own3"],), (chosen["own4"], chosen["own5"]), "site")
    job = Job("adapt", "random-forest", {"trees": 5, "max_depth": 4}, 3, "site-b", 0, split, inputs["params"].evaluate.band_mm)
    save_fit(train_one(job, task), work / "champion" / "fit")
    (work / "champion" / "text").mkdir()
    for path in (work / "data/prompts/prompts.json", work / "data/embeddings/text.json", work / "data/embeddings/text.safetensors"):
        shutil.copyfile(path, work / "champion" / "text" / path.name)
    write_json(work / "champion" / "champion.json", {"model": "semiflow-site-site-b", "version": 1, "source": "site-b"})
    return work
