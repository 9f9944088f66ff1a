"""A study in, a segmentation out: from a folder without any server, or from the site's archive and back to it as a flow.

`python -m flows.predict` is a plain command. The flow `predict` works off what waits at a site, one study after another: a study that fails is told
of and the others go on.
"""

from __future__ import annotations

from pathlib import Path

import cyclopts
from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from pipelines import cli
from pipelines.errors import DataError, SemiflowError, UsageError
from pipelines.ingest.source.scratch import scratch_folder
from pipelines.predict.qc import ANYWAY, Verdict
from pipelines.predict.run import OVERLAY, QC, predict_study
from tasks.artifacts import key_of, page, picture, table
from tasks.environment import PROJECT
from tasks.prediction import champion_of, claimed, keep, model_in, params_of, predict_one, retrieve_study, store_back, waiting
from tasks.runs import WATCHED

app = cyclopts.App(name="python -m flows.predict", help_format="plaintext")


def _run_name() -> str:
    return f"predict-{flow_run.parameters.get('site')}"


@flow(name="predict", flow_run_name=_run_name, validate_parameters=False, **WATCHED)
def predict(site: str, study: str | None = None, even_if_withheld: bool = False, project: Path = PROJECT) -> list[dict[str, object]]:
    """Predict a study of SITE by its keyed name, or every one that waits, and store what came of it where the study came from.

    Runs of one site may go side by side: each study is done by one of them. Returns a row a study; fails at the end where a study failed.
    """
    project = Path(project)
    rows = []
    for name in [study] if study else waiting(site, project):
        with claimed(site, name, bool(study), project) as mine:
            if mine:
                rows.append(one_study(site, name, even_if_withheld, project))
    table(key_of("predict", site), rows, f"{len(rows)} studies of {site}")
    if failed := [row for row in rows if row["verdict"] == "failed"]:
        raise DataError(f"{len(failed)} of {len(rows)} studies failed; the first: {failed[0]['why']}")
    return rows


def one_study(site: str, study: str, even_if_withheld: bool, project: Path) -> dict[str, object]:
    """One study there and back; what goes wrong with it is a row too."""
    log = get_run_logger()
    try:
        with scratch_folder() as private:
            source = retrieve_study(site, study, private, project)
            verdict = predict_one(site, source, private / "out", project, even_if_withheld)
            done = store_back(site, private / "out", project) if verdict.delivered else "nothing stored"
            kept = keep(site, study, private / "out", project)
    except SemiflowError as error:
        log.error("study %s failed: %s", study, error)
        return {"study": study, "verdict": "failed", "why": str(error)}
    log.info("study %s: %s; %s", study, said(verdict), done)
    page(key_of("predict", site, "verdict"), f"**{study}**: {said(verdict)}; {done}\n\n" + "\n".join(f"- {one.text}" for one in verdict.findings))
    if verdict.delivered:
        picture(key_of("predict", site, "overlay"), kept / OVERLAY, f"study {study}")
    return {"study": study, "verdict": "withheld" if verdict.withheld else "delivered", "why": verdict.reasons(), "stored": done,
            **{f"{label} ml": round(volume, 2) for label, volume in verdict.volumes_ml.items()}}


def said(verdict: Verdict) -> str:
    """The verdict in a few words."""
    if not verdict.withheld:
        return "segmented" if sum(verdict.volumes_ml.values()) else "nothing found"
    return f"withheld ({verdict.reasons()})" + (f", written all the same for {ANYWAY}" if verdict.released else "")


@app.default
def main(study: Path, *, out: Path, site: str | None = None, model: Path | None = None, params: Path | None = None, key: Path | None = None,
         even_if_withheld: bool = False) -> None:
    """Predict STUDY, a folder, .zip or .tar with the DICOM of one study, and write OUT: DICOM segmentations, an overlay and qc.json, the verdict.

    The segmentations are of the study: they carry its patient's name, and belong where it came from (python -m tasks.pacs store). A result that the
    checks speak against is withheld: then OUT holds qc.json alone, and the exit status is 1. No server is needed.

    Example: python -m flows.predict study.zip --site site-b --out result

    Parameters
    ----------
    site
        The site whose champion predicts, of params' service.sites.
    model
        Instead of a site's champion, the model in this folder (fit/ and text/).
    params
        With --model, a params.yaml that says how to ingest and resample; the project's own by default.
    key
        File with the key of the pseudonyms, instead of params' cohort.pseudonym_key, $SEMIFLOW_KEY_FILE or your own.
    even_if_withheld
        Write the segmentation although the checks speak against it.
    """
    if (site is None) == (model is None):
        raise UsageError("give exactly one of --site and --model: whose model predicts?")
    if site is not None and params is not None:
        raise UsageError("--params goes with --model; a site's studies are read with the params of its workspace")
    if site is not None:
        chosen, settings = champion_of(site)
    else:
        settings = params_of(params)
        chosen = model_in(model, settings)
    verdict = predict_study(study, out, chosen, settings, key_file=key, even_if_withheld=even_if_withheld)
    if not verdict.delivered:
        raise DataError(f"the result is withheld: {verdict.reasons()}; {out / QC} has the verdict, and {ANYWAY} writes the segmentation all the same")
    for finding in verdict.findings:
        print(f"predict: {finding.text}")
    measured = ", ".join(f"{label} {volume:.2f} ml" for label, volume in verdict.volumes_ml.items())
    print(f"predict: {measured}; written to {out}" + (f", although {verdict.reasons()}" if verdict.withheld else ""))


if __name__ == "__main__":
    cli.run(app)
