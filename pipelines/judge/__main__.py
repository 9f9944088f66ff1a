"""`python -m pipelines.judge`: champion and challenger on the same cases."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from pipelines.cli import run

app = cyclopts.App(name="python -m pipelines.judge")


@app.default
def main(*, workspace: Path, params: Path | None = None) -> None:
    """Let the champion and the challenger of a site predict the query cases of the site and of earlier sites, and decide.

    Writes WORKSPACE/verdict.json (decision, reasons, numbers, a row a case) and verdict.png (a query case as both outline it). What the decision
    follows is params `service.gate`; pipelines/sites/gate.py says why.

    Example: python -m pipelines.judge --workspace sites/site-b --params sites/site-b/params.yaml

    Parameters
    ----------
    workspace
        The site's folder, with `challenger/` of `python -m pipelines.adapt`, and `champion/` where one is served.
    params
        A params.yaml; the workspace's own by default.
    """
    from pipelines.judge.stage import judge
    from pipelines.params import load_params
    from pipelines.sites.folders import Folders

    folders = Folders(workspace)
    verdict = judge(folders, load_params(params or folders.params))
    print(f"{verdict['decision']}: {verdict['reasons'][0]}")


if __name__ == "__main__":
    run(app)
