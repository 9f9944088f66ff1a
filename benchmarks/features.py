"""Are Atlas's features worth it? Few-shot probes on them beside the same probes on others, and what it names with no label at all.

Real images go through the project's own ingest and resample stages; cases are drawn by its own protocol, and every set of features is judged
on the same draws. What is finished is kept in the work folder: a killed run goes on, and another Atlas costs only what depends on it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts

if __package__ in (None, ""):  # `python benchmarks/features.py`: the project is not on the path then
    sys.path[0] = str(Path(__file__).parents[1])

from pipelines.cli import run
from pipelines.errors import DataError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.feature_sets import FeatureSet
    from benchmarks.features_data import Cohort

COHORTS = ("tcga-lgg", "open-ms")
SETS = ("atlas", "filters", "atlas+filters", "random", "efficientnet-lite0", "class-ids")
app = cyclopts.App(name="python benchmarks/features.py", help_format="plaintext")


@app.default
def main(*, cohorts: Annotated[tuple[str, ...], cyclopts.Parameter(consume_multiple=True)] = COHORTS,
         sets: Annotated[tuple[str, ...], cyclopts.Parameter(consume_multiple=True)] = SETS,
         shots: Annotated[tuple[int, ...], cyclopts.Parameter(consume_multiple=True)] = (1, 4), seeds: int = 5,
         atlas: Path = Path("models/atlas"), class_ids: Path = Path("models/atlas-class-ids"), snapshots: Path | None = None,
         work: Path = Path("data/features"), out: Path = Path("reports/features.csv"), jobs: int = 2) -> None:
    """Compare frozen features by few-shot probes on real images, and measure what Atlas names without labels.

    Images are looked for in $SEMIFLOW_DATA (default ../shared/data). Writes a row per set of features, probe, draw and case, and prints
    means and ratios with paired bootstrap intervals over subjects.

    Parameters
    ----------
    cohorts
        Files of conf/cohort/; one whose images are not there is left out with a sentence.
    sets
        Which sets of features; all that can be had.
    shots
        Labelled cases per draw; a site with too few is left out with a sentence.
    seeds
        Support draws per site and number of shots.
    atlas
        Folder of the Atlas to judge.
    class_ids
        Folder of an Atlas trained on class ids instead of text (python -m pipelines.backbones.atlas.pretrain --supervision ids).
    snapshots
        Folder with step-<number>/ of a pretraining run: measures only zero-shot naming at each, into features-curve.csv beside OUT.
    work
        Where resampled images, features and finished results are kept.
    out
        The table to write.
    jobs
        Processes, one thread each; the numbers do not depend on it.
    """
    from benchmarks.feature_table import COLUMNS, print_table

    if min(shots, default=0) < 1 or seeds < 1:
        raise UsageError(f"--shots {min(shots, default=0)} and --seeds {seeds} must both be at least 1")
    if unknown := set(sets) - set(SETS):
        raise UsageError(f"--sets has {min(unknown)!r}; there are {', '.join(SETS)}")
    began = time.monotonic()
    work, found = work.resolve(), []
    for cohort in _cohorts(cohorts, work):
        found.append(_curve(cohort, snapshots, jobs) if snapshots else
                     _judge(cohort, shots, seeds, sets=sets, atlas=atlas, class_ids=class_ids, jobs=jobs))
    import pandas as pd

    rows = pd.concat(found, ignore_index=True)
    if snapshots:
        _write(rows, out.with_name("features-curve.csv"))
        print(rows.groupby(["cohort", "step"]).dice.mean().round(3).to_string())
    else:
        _write(rows[COLUMNS].sort_values([name for name in COLUMNS if name != "dice"]), out)
        from pipelines.params import load_params

        print_table(rows, load_params().evaluate)
    print(f"{len(rows)} rows in {time.monotonic() - began:.0f} s")


def _cohorts(names: Sequence[str], work: Path) -> list[Cohort]:
    from benchmarks.features_data import prepare

    found = []
    for name in names:
        try:
            found.append(prepare(name, work))
        except UsageError as error:
            print(f"{name} left out: {error}")
    if not found:
        raise DataError("no cohort could be read; set SEMIFLOW_DATA to the folder that holds real images")
    return found


def _judge(cohort: Cohort, shots: Sequence[int], seeds: int, *, sets: Sequence[str], atlas: Path, class_ids: Path, jobs: int) -> pd.DataFrame:
    """All rows of one cohort: every set by both probes, zero-shot naming, tissues."""
    import pandas as pd

    from benchmarks.feature_probes import draws_of

    draws, skipped = draws_of(cohort, shots, seeds)
    possible, absent = feature_sets(cohort, atlas, class_ids)
    chosen_sets = [one for one in possible if one.name in sets] if draws else []
    print("\n".join([f"{cohort.name}: {len(cohort.cases)} cases at {len(cohort.sites)} site(s), {len(draws)} draws", *skipped, *absent]), flush=True)
    tables = [_named(cohort, atlas, jobs)]
    for index, chosen in enumerate(chosen_sets):
        path = cohort.folder / "dice" / f"{chosen.name}-{_key(cohort, chosen, shots, seeds)[:12]}.csv"
        if not path.is_file():
            for outdated in path.parent.glob(f"{chosen.name}-????????????.csv"):
                outdated.unlink()
            _write(_probed(cohort, chosen, draws, jobs), path)
        tables.append(pd.read_csv(path, dtype={"site": str, "case": str}))
        later = {part.name for other in chosen_sets[index + 1:] for part in other.parts}
        for part in chosen.parts:
            if part.name not in later:  # large, and of no use once everything that needs it is done
                for folder in (cohort.folder / "features").glob(f"{part.name}-*"):
                    shutil.rmtree(folder)
    return pd.concat(tables, ignore_index=True)


def feature_sets(cohort: Cohort, atlas: Path, class_ids: Path) -> tuple[list[FeatureSet], list[str]]:
    """The sets that can be compared here, and one sentence for each that cannot."""
    from benchmarks.feature_encoders import AtlasEncoder, EfficientNetLite0, lite0_weights
    from benchmarks.feature_sets import FeatureSet, Filters, Grey, Tokens
    from pipelines.prompts.stage import phrase

    phrasings = json.dumps(phrase(cohort.manifest.query("kind == 'image'"), cohort.params))
    ours = Tokens("atlas", AtlasEncoder(atlas.resolve(), phrasings))
    sets = [FeatureSet("atlas", (Grey(), ours)), FeatureSet("filters", (Filters(),)), FeatureSet("atlas+filters", (ours, Filters())),
            FeatureSet("random", (Grey(), Tokens("random", AtlasEncoder(atlas.resolve(), phrasings, untrained=True))))]
    absent = []
    try:
        sets.append(FeatureSet("efficientnet-lite0", (Grey(), Tokens("efficientnet-lite0", EfficientNetLite0(lite0_weights())))))
    except DataError as error:
        absent.append(str(error))
    if class_ids.is_dir():
        sets.append(FeatureSet("class-ids", (Grey(), Tokens("class-ids", AtlasEncoder(class_ids.resolve(), phrasings)))))
    else:
        absent.append(f"class-ids left out: {class_ids} does not exist (python -m pipelines.backbones.atlas.pretrain --out {class_ids} "
                      "--supervision ids)")
    return sets, absent


def _probed(cohort: Cohort, chosen: FeatureSet, draws: Sequence, jobs: int) -> pd.DataFrame:
    """Compute one set's features, fit both probes on every draw, evaluate every query case."""
    import pandas as pd
    from joblib import delayed

    from benchmarks.feature_probes import evaluate, fit
    from benchmarks.feature_sets import compute

    began, what = time.monotonic(), f"{cohort.name}, {chosen.name}"
    parts = [(part, case) for part in chosen.parts for case in cohort.cases]
    _spread((delayed(compute)(cohort.folder, part, case, cohort.modalities) for part, case in parts), len(parts), f"{what}: features", jobs)
    ordered = sorted(draws, key=lambda one: (one.site, one.seed))
    together = [list(group) for _, group in groupby(ordered, key=lambda one: (one.site, one.seed))]
    fitted = [pair for group in _spread((delayed(fit)(cohort, chosen, group) for group in together), len(together), f"{what}: fits", jobs)
              for pair in group]
    by_site = {site: [pair for pair in fitted if pair[0].site == site] for site in cohort.sites}
    cases = [case for case in cohort.cases if by_site[case.site]]
    rows = _spread((delayed(evaluate)(cohort, chosen, case, by_site[case.site]) for case in cases), len(cases), f"{what}: predictions", jobs)
    print(f"{what}: {len(fitted)} fits and {len(cases)} cases in {time.monotonic() - began:.0f} s", flush=True)
    return pd.DataFrame([row for of_case in rows for row in of_case])


def _named(cohort: Cohort, atlas: Path, jobs: int) -> pd.DataFrame:
    """Rows of what Atlas names without labels."""
    import pandas as pd
    from joblib import delayed

    from benchmarks import feature_naming as naming

    folder = atlas.resolve()
    cases = [case for case in cohort.cases if naming.LESION_IMAGE in case.images]
    if len(cases) < len(cohort.cases):
        print(f"{cohort.name}: {len(cohort.cases) - len(cases)} case(s) without {naming.LESION_IMAGE} are left out of zero-shot naming")
    dice = _spread((delayed(naming.zero_shot)(cohort, case, folder) for case in cases), len(cases), f"{cohort.name}: zero-shot", jobs)
    found = [("atlas", "zero-shot", case, value) for case, value in zip(cases, dice, strict=True)]
    if cohort.name in naming.BRAIN_EXTRACTED:
        cases = [case for case in cohort.cases if naming.TISSUE_IMAGE in case.images]
        by_case = _spread((delayed(naming.tissues)(case, folder) for case in cases), len(cases), f"{cohort.name}: tissues", jobs)
        found += [(features, f"tissue {tissue}", case, value) for case, values in zip(cases, by_case, strict=True)
                  for features, tissue, value in values]
    return pd.DataFrame([{"features": features, "probe": probe, "cohort": cohort.name, "site": case.site, "shots": 0, "seed": 0, "case": case.id,
                          "dice": value} for features, probe, case, value in found])


def _curve(cohort: Cohort, folder: Path, jobs: int) -> pd.DataFrame:
    """Zero-shot naming by every snapshot of a pretraining run."""
    import pandas as pd
    from joblib import delayed

    from benchmarks.feature_naming import LESION_IMAGE, snapshots, zero_shot

    asked = [(step, path.resolve(), case) for step, path in snapshots(folder).items() for case in cohort.cases if LESION_IMAGE in case.images]
    dice = _spread((delayed(zero_shot)(cohort, case, path) for _, path, case in asked), len(asked), f"{cohort.name}: curve", jobs)
    return pd.DataFrame([{"step": step, "cohort": cohort.name, "site": case.site, "case": case.id, "dice": value}
                         for (step, _, case), value in zip(asked, dice, strict=True)])


def _spread(calls, total: int, what: str, jobs: int) -> list:
    """Results of joblib calls, in order, several processes of one thread each at a time."""
    from joblib import Parallel

    from benchmarks.features_data import watched

    # one case a task: a batch of cases would leave the other processes idle at the end
    parallel = Parallel(n_jobs=jobs, return_as="generator", inner_max_num_threads=1 if jobs > 1 else None, batch_size=1, max_nbytes=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped")  # replaced when it has grown by a case's size: nothing is lost
        return list(watched(parallel(calls), total, what))


def _key(cohort: Cohort, chosen: FeatureSet, shots: Sequence[int], seeds: int) -> str:
    """What a set's rows depend on."""
    from benchmarks.feature_probes import code_files
    from pipelines.outputs import sha256

    parts = [cohort.key, chosen.key, repr(tuple(shots)), str(seeds), *(sha256(path) for path in code_files())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write(rows: pd.DataFrame, path: Path) -> None:
    from pipelines.outputs import staged_file

    with staged_file(path) as temporary:
        rows.to_csv(temporary, index=False)


if __name__ == "__main__":
    run(app)
