"""`python -m pipelines.ingest`."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from pipelines.cli import run
from pipelines.params import load_params

app = cyclopts.App(name="python -m pipelines.ingest", help_format="markdown")


@app.default
def main(*, source: Path, out: Path, params: Path | None = None, site: str | None = None, key: Path | None = None, fingerprint: Path | None = None,
         repair: bool = False, jobs: int = 2) -> None:
    """Turn DICOM or BIDS NIfTI into a de-identified BIDS cohort with a manifest.

    DICOM series become NIfTI volumes in their measured units (PET in SUV), named by the rules of params `ingest.rules`; segmentation objects,
    contours and mask series become integer labels on the grid of their image. A series that is no regular volume, or that no rule knows, is not used:
    `quarantine.tsv` names the reason and the way out (docs/ingest.md lists them), and the others go on. `decisions.tsv` says for each series which
    rule decided and what it saw, `fingerprint.json` what the cohort is made of and what is odd about it. Patients get keyed pseudonyms; keep the key.

    For example, from a PACS export: `python -m pipelines.ingest --source export.zip --out data/mine/bids --site mine`

    Parameters
    ----------
    source
        Folder, .zip or .tar with DICOM, with NIfTI files named as BIDS names them, or with both; a folder may hold archives.
    out
        Folder to write the cohort to. Replaced as a whole when the run succeeds.
    params
        A params.yaml; the project's own if not given.
    site
        One site name for everything, instead of the rule in params `cohort.site`.
    key
        File with the key of the pseudonyms (at least 16 bytes), instead of params `cohort.pseudonym_key`, `$SEMIFLOW_KEY_FILE` or your own.
    fingerprint
        Where to put a copy of the cohort's fingerprint.json, for the report.
    repair
        Let dcm2niix resample tilted and unevenly spaced series onto an upright, even grid, instead of refusing them (as params `ingest.repair`).
        The manifest's note says so.
    jobs
        Processes to use.
    """
    from pipelines.ingest.stage import ingest

    checked = load_params(params)
    if repair:
        checked = checked.model_copy(update={"ingest": checked.ingest.model_copy(update={"repair": True})})
    print(ingest(source, out, checked, site=site, key_file=key, fingerprint_copy=fingerprint, jobs=jobs))


if __name__ == "__main__":
    run(app)
