"""`python -m pipelines.ingest`."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from pipelines.cli import run
from pipelines.params import load_params

app = cyclopts.App(name="python -m pipelines.ingest", help_format="markdown")


@app.default
def main(*, source: Path, out: Path, params: Path | None = None, site: str | None = None, key: Path | None = None, jobs: int = 2) -> None:
    """Turn DICOM or BIDS NIfTI into a de-identified BIDS cohort with a manifest.

    DICOM series become NIfTI volumes in their rescaled units (PET in SUV), named by the rules of params `ingest.rules`; segmentation objects and mask
    series become integer labels on the grid of their image. A series that is no regular volume, or that no rule knows, is not used: `quarantine.tsv`
    names the reason and the way out, and the others go on. `decisions.tsv` says for each series which rule decided and what it saw.
    Patients get keyed pseudonyms; keep the key.

    For example, from a PACS export: `python -m pipelines.ingest --source export.zip --out data/mine/bids --site mine`

    Parameters
    ----------
    source
        Folder or .zip with DICOM, with NIfTI files named as BIDS names them, or with both.
    out
        Folder to write the cohort to. Replaced as a whole when the run succeeds.
    params
        A params.yaml; the project's own if not given.
    site
        One site name for everything, instead of the rule in params `cohort.site`.
    key
        File with the key of the pseudonyms (at least 16 bytes), instead of params `cohort.pseudonym_key`, `$SEMIFLOW_KEY_FILE` or your own.
    jobs
        Processes to use.
    """
    from pipelines.ingest.stage import ingest

    print(ingest(source, out, load_params(params), site=site, key_file=key, jobs=jobs))


if __name__ == "__main__":
    run(app)
