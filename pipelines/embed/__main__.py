"""Stage 4 from the command line: `python -m pipelines.embed --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import cyclopts

from pipelines.cli import run

app = cyclopts.App(name="python -m pipelines.embed", help="Embed every image and text with the frozen backbone, once.")


@app.default
def embed(
    *,
    source: Annotated[Path, cyclopts.Parameter(help="folder of the resample stage")],
    prompts: Annotated[Path, cyclopts.Parameter(help="folder of the prompts stage")],
    out: Annotated[Path, cyclopts.Parameter(help="folder of the cache; kept and added to")],
    params: Annotated[Path | None, cyclopts.Parameter(help="params.yaml; default: the project's own")] = None,
    precision: Annotated[Literal["float16", "int8"] | None, cyclopts.Parameter(help="instead of embed.precision in params")] = None,
    dask: Annotated[str | None, cyclopts.Parameter(env_var="SEMIFLOW_DASK", help="Dask scheduler to compute on, tcp://host:8786")] = None,
    metrics: Annotated[Path | None, cyclopts.Parameter(
        help="JSON to write counts, sizes, speed and patch ceilings to; not in OUT, whose bytes do not vary")] = None,
    check_all: Annotated[bool, cyclopts.Parameter(negative=(), help="read every token file again, touched since the last run or not")] = False,
) -> None:
    """Bring the embedding cache in OUT up to date with SOURCE and PROMPTS.

    Tokens are stored under the hash of the image and of the backbone, so one new case costs one case and another backbone never meets
    old tokens. OUT/index.parquet says which file belongs to which image. Several processes may be given one OUT: they take turns.
    What was checked is noted beside OUT; where nothing has changed since, nothing is loaded or read.
    Workers of a Dask cluster have to see SOURCE and OUT under the same names. Example:

        python -m pipelines.embed --source data/phantom/resampled --prompts data/phantom/prompts --out data/phantom/embeddings
    """
    from pipelines.params import load_params

    settings = load_params(params)
    for folder, stage in ((source, "resample"), (prompts, "prompts")):
        _check(folder, stage)
    from pipelines.embed.update import update
    from pipelines.outputs import write_json

    chosen = settings.embed.model_copy(update={"precision": precision} if precision else {})
    done = update(source, prompts, out, chosen, [label.name for label in settings.cohort.labels], dask=dask or None, check_all=check_all)
    if metrics is not None:
        write_json(metrics, done)
    refused = f", {done['refused']} in quarantine" if done["refused"] else ""
    print(f"embedded {done['new']} new, {done['reused']} reused{refused}; {done['new_texts']} new texts")


@app.command
def gc(
    *,
    embeddings: Annotated[Path, cyclopts.Parameter(help="folder of the cache")],
    source: Annotated[tuple[Path, ...], cyclopts.Parameter(negative=(), help="folder with a manifest whose images are kept; once for each")] = (),
    listed_too: Annotated[bool, cyclopts.Parameter(negative=(), help="also remove what the index lists, where no SOURCE names it")] = False,
    dry_run: Annotated[bool, cyclopts.Parameter(negative=(), help="only say what would go")] = False,
) -> None:
    """Remove token files that nothing asks for: of an earlier backbone, or of images that left the cohort.

    What the index lists stays, and so does what a manifest of SOURCE names. Waits for a running embed stage. Example:

        python -m pipelines.embed gc --embeddings data/phantom/embeddings --dry-run
    """
    from pipelines.embed.garbage import clear
    from pipelines.errors import UsageError

    if not embeddings.is_dir():
        raise UsageError(f"{embeddings} is no folder; give the one that the embed stage wrote (python -m pipelines.embed --out {embeddings} ...)")
    for folder in source:
        _check(folder, "resample")
    cleared = clear(embeddings, source, listed_too=listed_too, dry_run=dry_run)
    print(f"{'would remove' if dry_run else 'removed'} {cleared.removed} token files, {cleared.removed_bytes / 1e6:.1f} MB; "
          f"{cleared.kept} stay, {cleared.kept_bytes / 1e6:.1f} MB")


def _check(folder: Path, stage: str) -> None:
    from pipelines.errors import UsageError

    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give the one that the {stage} stage wrote (python -m pipelines.{stage} --out {folder} ...)")


if __name__ == "__main__":
    run(app)
