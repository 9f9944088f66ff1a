"""`python -m pipelines.train`: few-shot training of one experiment's system on support cases."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from pipelines.cli import run

app = cyclopts.App(name="python -m pipelines.train")


@app.default
def train(*, experiment: str, source: Path, prompts: Path, embeddings: Path, out: Path, params: Path | None = None, jobs: int | None = None) -> None:
    """Train one experiment of params.yaml at every site with every seed, and set the temperature of each fit.

    Each fit gets a folder `OUT/<site>/seed-<s>/` with the system's weights and `fit.json`: which cases were support, calibration and query,
    the temperature, the seconds it took. A killed run continues where it stopped.

    Example: python -m pipelines.train --experiment semi-4 --source data/phantom/resampled --prompts data/phantom/prompts
    --embeddings data/phantom/embeddings --out data/phantom/models/semi-4

    Parameters
    ----------
    experiment
        Name under `experiments` in params.yaml: which system, how many shots.
    source
        The resample stage's folder.
    prompts
        The prompts stage's folder.
    embeddings
        The embed stage's folder.
    out
        Folder to make.
    params
        A params.yaml; the project's own by default.
    jobs
        Fits at a time; one per core by default.
    """
    from pipelines.params import load_params
    from pipelines.train.fit import fit_experiment

    fit_experiment(experiment, source=source, prompts=prompts, embeddings=embeddings, out=out, params=load_params(params), jobs=jobs)


if __name__ == "__main__":
    run(app)
