from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from pipelines.errors import UsageError
from pipelines.params import load_params
from tasks.dvc_stage import stages
from tasks.lay_out import lay_out, lay_out_beside

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The project's own graph, params and cohorts, with somebody else's images in the layout of tcga-lgg."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "conf", folder / "conf")
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(ROOT / name, folder / name)
    (tmp_path / "images" / "tcga-lgg" / "SITE").mkdir(parents=True)
    monkeypatch.setenv("SEMIFLOW_DATA", str(tmp_path / "images"))
    return folder


def test_sections_of_the_cohort_stand_in_for_the_projects(project, tmp_path):
    assert lay_out("tcga-lgg", project) == "cohorts/tcga-lgg/dvc.yaml:evaluate"
    params = load_params(project / "cohorts/tcga-lgg/params.yaml")
    own = load_params(project / "params.yaml")
    assert params.cohort.source == str(tmp_path / "images" / "tcga-lgg")
    assert (params.root, params.file) == ("../..", "cohorts/tcga-lgg/params.yaml")
    assert params.protocol.seeds == [0, 1, 2]
    assert (params.ingest, params.experiments) == (own.ingest, own.experiments)


def test_graph_has_every_stage_of_one_cohort(project):
    names = stages(lay_out("tcga-lgg", project), project)
    assert names[:4] == [f"cohorts/tcga-lgg/dvc.yaml:{stage}" for stage in ("ingest", "resample", "prompts", "embed")]
    assert sum("train@" in name for name in names) == sum("evaluate@" in name for name in names) == len(load_params(ROOT / "params.yaml").experiments)
    assert not any("report" in name or "simulate" in name for name in names)


def test_laying_out_again_touches_nothing(project):
    lay_out("tcga-lgg", project)
    files = sorted((project / "cohorts/tcga-lgg").iterdir())
    times = [path.stat().st_mtime_ns for path in files]
    lay_out("tcga-lgg", project)
    assert [path.stat().st_mtime_ns for path in files] == times


def test_the_projects_own_cohort_needs_no_copy(project):
    assert lay_out(load_params(project / "params.yaml").cohort.name, project) == "dvc.yaml:evaluate"
    assert not (project / "cohorts").exists()


def test_a_simulated_cohort_keeps_its_simulation(project):
    own = yaml.safe_load((project / "params.yaml").read_text())
    cohort = own["cohort"] | {"name": "small", "source": "data/small/dicom"}
    (project / "conf/cohort/small.yaml").write_text(yaml.safe_dump({"cohort": cohort, "simulate": own["simulate"] | {"subjects_per_site": 3}}))
    assert stages(lay_out("small", project), project)[0] == "cohorts/small/dvc.yaml:simulate"


def test_a_sweep_is_a_graph_of_its_own_that_needs_the_stages_up_to_embed(project):
    target = lay_out_beside("sweep", "tcga-lgg", project)
    assert target == "cohorts/tcga-lgg/sweep/dvc.yaml:sweep"
    assert stages(target, project) == [*(f"cohorts/tcga-lgg/dvc.yaml:{stage}" for stage in ("ingest", "resample", "prompts", "embed")), target]
    assert not any("sweep" in stage for stage in stages(lay_out("tcga-lgg", project), project))
    own = lay_out_beside("sweep", load_params(project / "params.yaml").cohort.name, project)
    assert stages(own, project) == ["simulate", "ingest", "resample", "prompts", "embed", own]


def test_a_sweep_without_arms_has_the_projects(project):
    lay_out_beside("sweep", "tcga-lgg", project)
    params = load_params(project / "cohorts/tcga-lgg/params.yaml")
    assert params.sweep.arms == load_params(project / "params.yaml").sweep.arms
    assert params.sweep.grids != load_params(project / "params.yaml").sweep.grids


def test_an_unknown_cohort_is_answered_with_those_there_are(project):
    with pytest.raises(UsageError, match="no cohort 'nope'; known: open-ms, paired, pgbm, phantom, tcga-lgg, tcga-lgg-grade"):
        lay_out("nope", project)


def test_absent_images_name_the_variable(project, monkeypatch):
    monkeypatch.setenv("SEMIFLOW_DATA", "/nowhere")
    with pytest.raises(UsageError, match="/nowhere/tcga-lgg, which does not exist; set SEMIFLOW_DATA to the folder that holds tcga-lgg"):
        lay_out("tcga-lgg", project)


def test_a_typo_in_a_cohort_is_named_with_its_file(project):
    path = project / "conf/cohort/tcga-lgg.yaml"
    path.write_text(path.read_text().replace("seeds:", "seedz:", 1))
    with pytest.raises(UsageError, match=r"conf/cohort/tcga-lgg\.yaml has 2 problem\(s\).*seedz"):
        lay_out("tcga-lgg", project)


def test_a_cohort_is_called_as_its_file(project):
    path = project / "conf/cohort/tcga-lgg.yaml"
    path.rename(path.with_stem("other"))
    with pytest.raises(UsageError, match="names its cohort 'tcga-lgg'; name it 'other'"):
        lay_out("other", project)
