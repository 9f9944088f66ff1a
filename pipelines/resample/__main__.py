"""`python -m pipelines.resample`: one grid per case, modalities aligned, intensities standardised."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from pipelines.cli import run

app = cyclopts.App(name="python -m pipelines.resample")


@app.default
def resample(*, source: Path, out: Path, params: Path | None = None, jobs: int | None = None) -> None:
    """Bring every case of an ingested cohort to one grid, align its modalities, standardise intensities, and find the foreground.

    The grid is the reference image's (params: resample.reference) with another in-plane spacing; thick slices stay as acquired. Images
    of the same frame of reference follow by their affine, others by rigid registration, whose result stands in the manifest's note.
    Labels become the target codes of cohort.labels. Whatever cannot be used is in OUT/quarantine.tsv with a reason.

    Example: python -m pipelines.resample --source data/phantom/bids --out data/phantom/resampled

    Parameters
    ----------
    source
        The ingest stage's folder: NIfTI in BIDS names with manifest.tsv.
    out
        Folder to write. It appears whole or not at all; a killed run is resumed.
    params
        A params.yaml; the project's own by default.
    jobs
        Cases at a time; one per core by default.
    """
    from pipelines.params import load_params
    from pipelines.resample.stage import resample_cohort

    resample_cohort(source, out, load_params(params), jobs)


if __name__ == "__main__":
    run(app)
