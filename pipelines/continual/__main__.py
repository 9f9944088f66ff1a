"""`python -m pipelines.continual`: sites one after another, by every method of params' section `continual`."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from pipelines.cli import run

app = cyclopts.App(name="python -m pipelines.continual")


@app.default
def main(*, source: Path, prompts: Path, embeddings: Path, out: Path, work: Path | None = None, params: Path | None = None,
         jobs: int | None = None) -> None:
    """Let every method learn the sites one after another, in several orders and with several seeds, and measure every site after each.

    Finished units stay in the work folder: a killed run goes on where it stopped, and a later one makes only what is new or has changed.

    Example: python -m pipelines.continual --source data/phantom/resampled --prompts data/phantom/prompts
    --embeddings data/phantom/embeddings --out reports/cohorts/phantom/continual

    Parameters
    ----------
    source
        The resample stage's folder.
    prompts
        The prompts stage's folder.
    embeddings
        The embed stage's folder.
    out
        Folder to make: continual.csv, costs.csv, cases.csv, continual.json.
    work
        Folder of finished units; `continual` beside the source by default. It may be deleted at any time.
    params
        A params.yaml; the project's own by default.
    jobs
        Units at a time; one per core by default.
    """
    from pipelines.continual.stage import continual
    from pipelines.params import load_params

    continual(source=source, prompts=prompts, embeddings=embeddings, out=out, work=work, params=load_params(params), jobs=jobs)


if __name__ == "__main__":
    run(app)
