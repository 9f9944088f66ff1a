"""Drift of one site from the command line: `python -m pipelines.drift --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cyclopts

from pipelines.cli import run

app = cyclopts.App(name="python -m pipelines.drift", help="Say whether a site's latest cases differ from those that its champion was made with.")


@app.default
def drift(
    *,
    workspace: Annotated[Path, cyclopts.Parameter(help="the site's folder: data/resampled, data/embeddings, champion/")],
    params: Annotated[Path | None, cyclopts.Parameter(help="params.yaml; default: the workspace's, else the project's own")] = None,
    calibration: Annotated[bool, cyclopts.Parameter(help="let the champion predict the labelled cases that came since")] = True,
) -> None:
    """Write WORKSPACE/drift.json and print its sentence.

    A permutation test on energy distances between patients, of pooled embeddings and of histograms of the resampled images; new header facts; the
    champion's calibration error on labels that came since. The rule is params `service.drift`. Example:

        python -m pipelines.drift --workspace sites/site-b
    """
    from pipelines.drift.look import look
    from pipelines.errors import UsageError
    from pipelines.params import load_params

    if not workspace.is_dir():
        raise UsageError(f"{workspace} is no folder; give the workspace of a site (flows.adapt_site makes it)")
    own = workspace / "params.yaml"
    found, _ = look(workspace, load_params(params or (own if own.is_file() else None)), calibration=calibration)
    print(f"{found['verdict']}: {found['sentence']}")


if __name__ == "__main__":
    run(app)
