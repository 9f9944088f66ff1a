"""Lay out another cohort's graph: the stages of dvc.yaml once more, under cohorts/<name>/, with that cohort's params.

DVC keeps one lock file per dvc.yaml, so each cohort remembers its own state, and going back to one reruns nothing. (DVC's Hydra
composition would rewrite params.yaml itself, and with it make every other cohort stale; it also needs Git.)

A cohort's sweep is a graph of its own, cohorts/<name>/sweep/, laid out when it is first asked for: as a stage of dvc.yaml, `dvc repro` would run it
too, and a reproduction takes minutes where a sweep takes an hour or more. So is its continual protocol.
"""

from __future__ import annotations

import os
from pathlib import Path

import cyclopts
import yaml
from pydantic import ValidationError

from pipelines import cli
from pipelines.errors import UsageError
from pipelines.outputs import write_text
from pipelines.params import Params, explain, load_params
from tasks.environment import PROJECT

#: Stages that look over all cohorts; they stay in the project's own dvc.yaml.
SHARED_STAGES = ("report", "record")
CONF = "conf/cohort"
#: Graphs beside a cohort's own, each with one stage and one section of params of the same name.
BESIDE = {"sweep": "conf/sweep.yaml", "continual": "conf/continual.yaml"}

app = cyclopts.App(name="python -m tasks.lay_out", help_format="plaintext")


@app.default
def main(cohort: str, *, sweep: bool = False, continual: bool = False) -> None:
    """Write cohorts/COHORT/params.yaml and dvc.yaml, and print the target to give to `dvc repro`.

    COHORT is a file of conf/cohort/ (its sections stand in for those of params.yaml), or the cohort that params.yaml itself names.
    Where its source says ${SEMIFLOW_DATA}, the folder in that variable is meant (default ../shared/data).

    Example: dvc repro $(python -m tasks.lay_out tcga-lgg) && dvc repro --single-item report record

    Parameters
    ----------
    sweep
        Lay out the cohort's sweep too, and print its target instead: every arm, protocol and number of shots of params' section 'sweep'.
    continual
        The same for its sites one after another: params' section 'continual'.
    """
    print(lay_out_beside("sweep", cohort) if sweep else lay_out_beside("continual", cohort) if continual else lay_out(cohort))


def lay_out_beside(name: str, cohort: str, project: Path = PROJECT) -> str:
    """Write the graph `name` of `BESIDE` for the cohort, and the cohort's own, which it needs. Returns its DVC target, seen from the project."""
    lay_out(cohort, project)
    own = cohort == load_params(project / "params.yaml").cohort.name
    file = "params.yaml" if own else f"cohorts/{cohort}/params.yaml"
    if getattr(load_params(project / file), name) is None:
        raise UsageError(f"cohort {cohort!r} has no section {name!r} in {'params.yaml' if own else f'{CONF}/{cohort}.yaml'}; add one with its "
                         f"{'grids' if name == 'sweep' else 'arms'}")
    text = (project / BESIDE[name]).read_text()
    for word, value in (("${root}", "../../.."), ("${file}", file), ("${cohort.name}", cohort)):
        text = text.replace(word, value)
    note = f"# Laid out from {BESIDE[name]} by tasks/lay_out.py. Edit that; this file is overwritten.\n"
    write_if_changed(project / "cohorts" / cohort / name / "dvc.yaml", note + text)
    return f"cohorts/{cohort}/{name}/dvc.yaml:{name}"


def lay_out(cohort: str, project: Path = PROJECT) -> str:
    """Write the cohort's graph if it is not there or differs. Returns the DVC target of its last own stages, seen from the project."""
    own = load_params(project / "params.yaml")
    conf = project / CONF / f"{cohort}.yaml"
    if cohort == own.cohort.name:
        return "dvc.yaml:evaluate"
    if not conf.is_file():
        known = sorted({own.cohort.name, *(path.stem for path in (project / CONF).glob("*.yaml"))})
        raise UsageError(f"there is no cohort {cohort!r}; known: {', '.join(known)} (add {CONF}/{cohort}.yaml for a new one)")
    sections = yaml.safe_load(conf.read_text())
    params = compose(cohort, conf.relative_to(project), sections, project)
    graph = cohort_graph(yaml.safe_load((project / "dvc.yaml").read_text()), simulated="simulate" in sections)
    note = f"# Laid out from params.yaml, dvc.yaml and {CONF}/{cohort}.yaml by tasks/lay_out.py. Edit those; this file is overwritten.\n"
    folder = project / "cohorts" / cohort
    for name, content in (("params.yaml", params), ("dvc.yaml", graph)):
        write_if_changed(folder / name, note + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=150))
    return f"cohorts/{cohort}/dvc.yaml:evaluate"


def compose(cohort: str, conf: Path, sections: object, project: Path = PROJECT) -> dict:
    """The project's params with `sections` in place of its own, checked as a whole; its source must exist unless it is simulated.

    A sweep or a continual protocol that gives no arms has the project's.
    """
    if not isinstance(sections, dict) or "cohort" not in sections:
        raise UsageError(f"{conf} has no section 'cohort'; compare it with the others in {CONF}")
    own = yaml.safe_load((project / "params.yaml").read_text())
    content = own | sections
    for name in BESIDE:
        if isinstance(sections.get(name), dict) and name in own:
            content[name] = {"arms": own[name]["arms"]} | sections[name]
    content |= {"root": "../..", "file": f"cohorts/{cohort}/params.yaml"}
    try:
        params = Params(**content)
    except ValidationError as error:
        raise UsageError(f"{conf} has {error.error_count()} problem(s): " + " | ".join(explain(error))) from None
    if params.cohort.name != cohort:
        raise UsageError(f"{conf} names its cohort {params.cohort.name!r}; name it {cohort!r}, as the file")
    source = resolve_source(params.cohort.source, conf, project, must_exist="simulate" not in sections)
    content["cohort"] = params.cohort.model_dump(mode="json") | {"source": source}  # defaults spelled out: DVC wants every key it tracks
    return content


def resolve_source(source: str, conf: Path, project: Path, must_exist: bool) -> str:
    """`source` with ${SEMIFLOW_DATA} filled in, as a path seen from the project."""
    data = os.environ.get("SEMIFLOW_DATA") or "../shared/data"
    path = source.replace("${SEMIFLOW_DATA}", data.rstrip("/"))
    if "$" in path:
        raise UsageError(f"{conf} has cohort.source {source!r}; only ${{SEMIFLOW_DATA}} is filled in there")
    if must_exist and not (project / path).exists():
        raise UsageError(f"{conf} wants its images at {path}, which does not exist; set SEMIFLOW_DATA to the folder that holds "
                         f"{source.removeprefix('${SEMIFLOW_DATA}/')}")
    return path


def cohort_graph(graph: dict, simulated: bool) -> dict:
    """The stages of the project's graph that every cohort has for itself."""
    absent = SHARED_STAGES if simulated else (*SHARED_STAGES, "simulate")
    return {"stages": {name: stage for name, stage in graph["stages"].items() if name not in absent}}


def write_if_changed(path: Path, text: str) -> None:
    """Leave an equal file alone, so that its time stays and nothing looks new."""
    if not path.is_file() or path.read_text() != text:
        write_text(path, text)


if __name__ == "__main__":
    cli.run(app)
