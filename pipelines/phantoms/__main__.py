"""Command line of the simulated cohort: `python -m pipelines.phantoms --help`."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from pipelines import cli

app = cyclopts.App(name="python -m pipelines.phantoms")


@app.default
def main(*, out: Path, params: Path | None = None, jobs: int = 2) -> None:
    """Simulate a cohort of brain tumours at four hospitals and write it as DICOM.

    Each subject has T1w, ceT1w, T2w, FLAIR and, at two hospitals, FET PET, and the tumour as a DICOM segmentation. All identities are
    invented. The same params make the same bytes. With "kind: paired" in the section "simulate", MR and PET pairs with an outcome are
    written instead, as BIDS NIfTI (pipelines/phantoms/paired.py). Example:

        python -m pipelines.phantoms --out data/phantom/dicom

    Parameters
    ----------
    out:
        Folder to write: OUT/<site>/<patient>/<series>/*.dcm. Replaced when it exists.
    params:
        A params.yaml, of which the section "simulate" is read; the project's own when not given.
    jobs:
        How many subjects are simulated at the same time.
    """
    from pipelines.params import load_params

    settings = load_params(params).simulate
    if settings.kind == "paired":
        from pipelines.phantoms.paired import simulate_paired as simulate
    else:
        from pipelines.phantoms.cohort import simulate
    count = simulate(settings, out, jobs)
    print(f"simulated {count} subjects")


if __name__ == "__main__":
    cli.run(app)
