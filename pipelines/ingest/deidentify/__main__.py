"""`python -m pipelines.ingest.deidentify`."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from pipelines.cli import run
from pipelines.params import load_params

app = cyclopts.App(name="python -m pipelines.ingest.deidentify", help_format="markdown")


@app.default
def main(*, source: Path, out: Path, params: Path | None = None, key: Path | None = None, jobs: int = 2) -> None:
    """Write de-identified copies of DICOM files, by the Basic Application Level Confidentiality Profile of DICOM PS3.15.

    Patients get keyed pseudonyms, UIDs keyed UIDs, the same in every run with the same key; keep the key. Params `ingest.deidentify.dates` says
    whether dates go (`remove`) or move into the past by a number of days of the patient's own (`shift`: intervals and uptake values stay), `device`
    whether vendor, model and field strength stay. Text stays only as words of fixed vocabularies. Pictures that may show a name are refused.
    `audit.tsv` says what was done to each series, `quarantine.tsv` which files were left out and why. See docs/deidentification.md.

    For example: `python -m pipelines.ingest.deidentify --source export.zip --out shared/export`

    Parameters
    ----------
    source
        Folder or archive with DICOM.
    out
        Folder to write to. Replaced as a whole when the run succeeds; a run that was killed is resumed.
    params
        A params.yaml; the project's own if not given.
    key
        File with the key of the pseudonyms (at least 16 bytes), instead of params `cohort.pseudonym_key`, `$SEMIFLOW_KEY_FILE` or your own.
    jobs
        Processes to use.
    """
    from pipelines.ingest.deidentify.stage import deidentify

    print(deidentify(source, out, load_params(params), key_file=key, jobs=jobs))


if __name__ == "__main__":
    run(app)
