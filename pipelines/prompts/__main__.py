"""`python -m pipelines.prompts`: text for every modality, class and site."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from pipelines.cli import run

app = cyclopts.App(name="python -m pipelines.prompts")


@app.default
def prompts(*, source: Path, out: Path, params: Path | None = None) -> None:
    """Write the texts that describe each class on each modality at each site, to be encoded by the frozen text encoder.

    Templates (params: prompts.templates) are filled with {class}, {modality}, {disease}, and with header facts of the site: {scanner}
    ("3 T Siemens") and {sequence} ("TR 9000 ms, TE 120 ms, TI 2500 ms"). A phrase whose fact is unknown at a site is dropped.

    Example: python -m pipelines.prompts --source data/phantom/resampled --out data/phantom/prompts

    Parameters
    ----------
    source
        The resample stage's folder.
    out
        Folder to write: prompts.json (modality, class, site, texts) and prompts.tsv, the same as a table to read.
    params
        A params.yaml; the project's own by default.
    """
    from pipelines.params import load_params
    from pipelines.prompts.stage import write_prompts

    write_prompts(source, out, load_params(params))


if __name__ == "__main__":
    run(app)
