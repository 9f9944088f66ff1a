"""`python -m pipelines.ingest.fingerprint`."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from pipelines.cli import run

app = cyclopts.App(name="python -m pipelines.ingest.fingerprint", help_format="markdown")


@app.default
def main(*, source: Path, copy: Path | None = None) -> None:
    """Say what is in a cohort and what somebody should look at before anything is trained on it.

    Reads a folder that `python -m pipelines.ingest` wrote and writes its `fingerprint.json`: modalities, sites and scanners, which images each case
    has, volumes of the labels, and warnings, each with a code, a sentence and what to do. Ingest does the same at its end; use this for a cohort
    of an earlier version, or after a change by hand.

    For example: `python -m pipelines.ingest.fingerprint --source data/mine/bids`

    Parameters
    ----------
    source
        The cohort's folder, with its `manifest.tsv`.
    copy
        A second file to write the same to.
    """
    from pipelines.ingest.fingerprint.stage import write_fingerprint

    made = write_fingerprint(source, copies=[copy] if copy else [])
    print(", ".join(f"{count} {name}" for name, count in made["counts"].items()))
    for warning in made["warnings"]:
        print(f"{warning['severity']}: {warning['code']}: {warning['sentence']}; {warning['remedy']}")


if __name__ == "__main__":
    run(app)
