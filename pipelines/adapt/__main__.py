"""`python -m pipelines.adapt`: the next model of one site."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from pipelines.cli import run

app = cyclopts.App(name="python -m pipelines.adapt")


@app.default
def main(*, workspace: Path, params: Path | None = None) -> None:
    """Train one model on a site's support cases, with cases of earlier sites beside them, and write it to WORKSPACE/challenger.

    What it learns from is WORKSPACE/lesson.json, which names every case and its role. `challenger/fit` is a fit as the train stage keeps it,
    `challenger/text` its prompts and their vectors.

    Example: python -m pipelines.adapt --workspace sites/site-b --params sites/site-b/params.yaml

    Parameters
    ----------
    workspace
        The site's folder, laid out and filled by flows.adapt_site.
    params
        A params.yaml; the workspace's own by default.
    """
    from pipelines.adapt.stage import adapt
    from pipelines.params import load_params
    from pipelines.sites.folders import Folders

    folders = Folders(workspace)
    record = adapt(folders, load_params(params or folders.params))
    print(f"adapted {record['system']} to {record['site']} with {record['shots']} case(s), and {len(record['split']['source'])} of earlier sites; "
          f"{record['train_seconds']:.1f} s, T = {record['temperature']:.2f}")


if __name__ == "__main__":
    run(app)
