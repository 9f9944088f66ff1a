"""Every fit of one experiment: sites x seeds, each in its own folder, several at a time, resumed after a kill.

Each fit computes on one thread, and fits run side by side in processes: on two cores that is faster than one fit on two threads (small
matrices), and results do not depend on how many run at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipelines.cohort import MANIFEST, PARTICIPANTS, Case
from pipelines.errors import UsageError
from pipelines.outputs import sha256, staged_folder
from pipelines.parallel import spread
from pipelines.params import Experiment, Params
from pipelines.systems import answers_of, params_model
from pipelines.systems.protocol import Task
from pipelines.train.fitted import RECORD
from pipelines.train.inputs import experiment_of, load_task
from pipelines.train.one import Job, save_fit, train_one
from pipelines.train.split import draw, sites_of


def fit_experiment(name: str, *, source: Path, prompts: Path, embeddings: Path, out: Path, params: Params, jobs: int | None = None) -> None:
    """Train experiment `name` at every site with every seed of the protocol into `out/<site>/seed-<s>/`.

    All draws are made before anything is trained, so that a site with too few cases stops the stage at once. `jobs`: fits at a time,
    by default one per core.
    """
    experiment = experiment_of(params, name)
    task, cases = load_task(source, prompts, embeddings, params)
    plan = plan_fits(name, experiment, cases, params)
    with staged_folder(out, inputs=_fingerprint(experiment, task, params, source, prompts)) as folder:
        waiting = [job for job in plan if not (job.folder(folder) / RECORD).is_file()]
        if len(waiting) < len(plan):
            print(f"{name}: {len(plan) - len(waiting)} of {len(plan)} fits were finished by an earlier run", flush=True)
        _run(waiting, task, folder, jobs or os.cpu_count() or 1)


def plan_fits(name: str, experiment: Experiment, cases: Sequence[Case], params: Params) -> list[Job]:
    """The fits of an experiment with their draws."""
    system_params, answers = params_model(experiment.system)(**experiment.params).model_dump(mode="json"), answers_of(experiment.system)
    if answers == "case" and params.cohort.outcome is None:
        raise UsageError(f"experiment {name!r}: {experiment.system} tells the outcome of whole cases, and cohort.outcome in params.yaml is not "
                         "given; name a column of participants.tsv there")
    kind = experiment.protocol or params.protocol.kind
    return [Job(name, experiment.system, system_params, experiment.shots, site, seed,
                draw(cases, site, experiment.shots, seed, params.protocol, split_by=params.cohort.split_by, experiment=name, kind=kind,
                     answers=answers),
                params.evaluate.band_mm, kind)
            for site in sites_of(cases, params.cohort.targets, kind) for seed in params.protocol.seeds]


def fit_one(job: Job, task: Task, out: Path) -> dict:
    """Train, calibrate and write one fit; its folder appears whole. Returns what `fit.json` holds."""
    return save_fit(train_one(job, task), job.folder(out))


def _run(waiting: Sequence[Job], task: Task, out: Path, jobs: int) -> None:
    """Make the fits, `jobs` at a time, telling how far it is and how long it will take."""
    start = time.monotonic()
    done = spread(partial(fit_one, task=task, out=out), waiting, jobs)
    for count, record in enumerate(done, start=1):
        left = (time.monotonic() - start) / count * (len(waiting) - count)
        print(f"{record['experiment']}: fit {count} of {len(waiting)}, site {record['site']} seed {record['seed']}, "
              f"{record['train_seconds']:.1f} s, T = {record['temperature']:.2f}; about {left:.0f} s left", flush=True)


def _fingerprint(experiment: Experiment, task: Task, params: Params, source: Path, prompts: Path) -> str:
    """What the fits depend on: a killed run is resumed only when none of it has changed, code included."""
    package = Path(__file__).parents[1]
    table = Path(source) / PARTICIPANTS
    code = sorted((*(package / "train").rglob("*.py"), *(package / "systems").rglob("*.py")))
    content = {"experiment": experiment.model_dump(mode="json"), "protocol": params.protocol.model_dump(mode="json"),
               "split_by": params.cohort.split_by, "targets": params.cohort.targets, "labels": task.labels, "band_mm": params.evaluate.band_mm,
               "cohort": sha256(Path(source) / MANIFEST), "prompts": sha256(Path(prompts) / "prompts.json"),
               "backbone": task.backbone.fingerprint, "code": [sha256(path) for path in code],
               "outcomes": [task.outcomes, sha256(table)] if task.outcomes else []}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
