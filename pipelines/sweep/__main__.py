"""`python -m pipelines.sweep`: every fit of the matrix in params' section `sweep`."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from pipelines.cli import run

app = cyclopts.App(name="python -m pipelines.sweep")


@app.default
def main(*, source: Path, prompts: Path, embeddings: Path, out: Path, work: Path | None = None, params: Path | None = None, jobs: int | None = None,
         plan: bool = False) -> None:
    """Train, calibrate and measure every arm of the sweep under every protocol, with every number of shots, at every site, with every seed.

    Finished fits stay in the work folder: a killed run goes on where it stopped, and a later one makes only what is new or has changed.

    Example: python -m pipelines.sweep --source data/phantom/resampled --prompts data/phantom/prompts
    --embeddings data/phantom/embeddings --out reports/cohorts/phantom/sweep

    Parameters
    ----------
    source
        The resample stage's folder.
    prompts
        The prompts stage's folder.
    embeddings
        The embed stage's folder.
    out
        Folder to make: per arm, shots and protocol what the evaluate stage makes of an experiment; cost.csv; missing.csv; left_out.csv.
    work
        Folder of finished fits; `sweep` beside the source by default. It may be deleted at any time.
    params
        A params.yaml; the project's own by default.
    jobs
        Fits at a time; one per core by default.
    plan
        Only tell which fits would be made, and how long that takes as far as earlier runs know.
    """
    from pipelines.params import load_params
    from pipelines.sweep.stage import sweep

    sweep(source=source, prompts=prompts, embeddings=embeddings, out=out, work=work, params=load_params(params), jobs=jobs, plan=plan)


if __name__ == "__main__":
    run(app)
