"""Command line of the report stage."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from pipelines.cli import run

app = cyclopts.App(name="python -m pipelines.report", help_format="markdown")


@app.default
def main(*, source: Path = Path("reports/cohorts"), out: Path = Path("reports"), params: Path | None = None) -> None:
    """Make the tables, the figures and the report of every cohort and experiment evaluated so far.

    Example:

        python -m pipelines.report --source reports/cohorts --out reports

    Writes results.csv (a row per case and label), metrics.json (means with bootstrap intervals, paired comparisons), plots/ (for
    `dvc plots`), figures/ and index.html, one self-contained page. `python -m pipelines.report.table` prints the results in the terminal.

    A cohort with a sweep (<cohort>/sweep/, which `python -m pipelines.sweep` writes) is reported by its sweep, and the page then also has the
    protocols, ablations, missing modalities and costs; its single experiments stay in results.csv and metrics.json.
    `python -m pipelines.report.evidence` takes the tables of docs/evidence.md from metrics.json.

    Parameters
    ----------
    source
        Folder with <cohort>/<experiment>/ as `python -m pipelines.evaluate` writes them.
    out
        Folder to write into. Each file and folder of it appears whole or not at all.
    params
        A params.yaml; by default the project's own. Cohorts laid out beside it (cohorts/*/params.yaml) are reported too. Experiments that
        none of them lists are left out.
    """
    from pipelines.report.stage import report

    report(source, out, params)


if __name__ == "__main__":
    run(app)
