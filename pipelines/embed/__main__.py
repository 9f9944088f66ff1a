"""Stage 4 from the command line: `python -m pipelines.embed --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cyclopts

from pipelines.cli import run

app = cyclopts.App(help="Embed every image and text with the frozen backbone, once.")


@app.default
def embed(
    *,
    source: Annotated[Path, cyclopts.Parameter(help="folder of the resample stage")],
    prompts: Annotated[Path, cyclopts.Parameter(help="folder of the prompts stage")],
    out: Annotated[Path, cyclopts.Parameter(help="folder of the cache; kept and added to")],
    params: Annotated[Path | None, cyclopts.Parameter(help="params.yaml; default: the project's own")] = None,
) -> None:
    """Bring the embedding cache in OUT up to date with SOURCE and PROMPTS.

    Tokens are stored under the hash of the image and of the backbone, so one new case costs one case and another backbone never meets
    old tokens. OUT/index.parquet says which file belongs to which image. Example:

        python -m pipelines.embed --source data/phantom/resampled --prompts data/phantom/prompts --out data/phantom/embeddings
    """
    from pipelines.params import load_params

    settings = load_params(params).embed
    for folder, stage in ((source, "resample"), (prompts, "prompts")):
        _check(folder, stage)
    from pipelines.backbones import load_backbone
    from pipelines.embed.stage import embed as embed_folder

    outcome = embed_folder(source, prompts, out, load_backbone(settings.backbone), settings.jobs)
    refused = f", {outcome.refused} in quarantine" if outcome.refused else ""
    print(f"embedded {outcome.new} new, {outcome.reused} reused{refused}; {outcome.new_texts} new texts")


def _check(folder: Path, stage: str) -> None:
    from pipelines.errors import UsageError

    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give the one that the {stage} stage wrote (python -m pipelines.{stage} --out {folder} ...)")


if __name__ == "__main__":
    run(app)
