"""Command line of the evaluate stage."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from pipelines.cli import run

app = cyclopts.App(name="python -m pipelines.evaluate", help_format="markdown")


@app.default
def main(*, experiment: str, models: Path, source: Path, prompts: Path, embeddings: Path, out: Path, params: Path | None = None) -> None:
    """Predict the query cases of every fit of one experiment, and measure overlap, surfaces and calibration case by case.

    Example:

        python -m pipelines.evaluate --experiment semi-4 --models data/phantom/models/semi-4 --source data/phantom/resampled
            --prompts data/phantom/prompts --embeddings data/phantom/embeddings --out reports/cohorts/phantom/semi-4

    Writes cases.csv (a row per fit, case and label), reliability.csv, summary.json and overlays/. `python -m pipelines.report` makes
    tables, figures and the report of them.

    Parameters
    ----------
    experiment
        Name of an entry of `experiments` in params.yaml.
    models
        Folder that `python -m pipelines.train` wrote for this experiment.
    source
        Resampled cohort: the folder with manifest.tsv that `python -m pipelines.resample` wrote.
    prompts
        Folder that `python -m pipelines.prompts` wrote.
    embeddings
        Folder that `python -m pipelines.embed` wrote.
    out
        Folder to write. It appears whole or not at all; a killed run is resumed.
    params
        A params.yaml; by default the project's own.
    """
    from pipelines.evaluate.stage import evaluate, manifest_hash
    from pipelines.params import load_params
    from pipelines.train.inputs import experiment_of, load_task

    settings = load_params(params)
    experiment_of(settings, experiment)
    task, cases = load_task(source, prompts, embeddings, settings)
    evaluate(experiment, models, out, task=task, cases=cases, params=settings, cohort=manifest_hash(source))


if __name__ == "__main__":
    run(app)
