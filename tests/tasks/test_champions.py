"""Which model serves a site: aliases of a real registry, the site's own copy, and what is left when a promotion is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipelines.errors import DataError
from pipelines.outputs import write_json
from pipelines.sites.lesson import digest
from pipelines.train.fitted import load_fitted

ROOT = Path(__file__).parents[2]
SITES = ("kill-register", "kill-champion", "one", "two", "back", "raced", "elder", "younger")


@pytest.fixture
def hospital(own_project, tracking) -> Path:
    """A project with sites."""
    content = yaml.safe_load((own_project / "params.yaml").read_text())
    content["service"]["sites"] = {name: {} for name in SITES}
    (own_project / "params.yaml").write_text(yaml.safe_dump(content))
    return own_project


def challenger(project: Path, site: str, number: int = 1) -> tuple[Path, dict]:
    """A real fit as stage adapt leaves it, and a verdict that promotes it over whatever serves the site."""
    import shutil

    from tasks.champions import NOBODY, serving

    folder, data = project / "sites" / site / "challenger", project / "data" / "tiny"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(data / "models" / f"random-forest-{number}" / "A" / "seed-0", folder / "fit")
    (folder / "text").mkdir()
    for path in (data / "prompts" / "prompts.json", data / "embeddings" / "text.json", data / "embeddings" / "text.safetensors"):
        shutil.copyfile(path, folder / "text" / path.name)
    fit = json.loads((folder / "fit" / "fit.json").read_text())
    write_json(folder / "fit" / "fit.json", fit | {"protocol": "within", "calibration_from": "site", "split": {"source": []}})
    write_json(folder / "fit" / "site.json", {"site": site, "backbone": "atlas:models/atlas", "labels": {"sub-x": "0"}, "earlier": {}})
    champion = serving(site, project)
    return folder, {"site": site, "decision": "promote", "reasons": [f"model {number} is better"], "numbers": {"difference": 0.1, "low": 0.05},
                    "champion": champion.as_json() if champion else dict(NOBODY), "challenger": digest(folder), "cases": []}


def loadable(folder: Path, task, case_of) -> np.ndarray:
    return load_fitted(folder / "fit", task).predict(case_of(2))


def test_promotion_sets_aliases_and_the_site_gets_its_copy(hospital, tracking, tiny_task, case_of):
    from tasks.champions import earlier_sites, fetch, promote, serving

    folder, verdict = challenger(hospital, "one")
    own = hospital / "sites" / "one" / "champion"
    version = promote("one", folder, verdict, hospital, tables={"verdict.md": "# promote"})
    assert (version.name, version.version) == ("semiflow-site-one", 1)
    assert fetch("one", project=hospital) == own
    np.testing.assert_array_equal(loadable(own, tiny_task, case_of), loadable(folder, tiny_task, case_of))
    assert json.loads((own / "champion.json").read_text())["version"] == 1
    assert (own / "text" / "text.safetensors").is_file()
    run = tracking.get_run(version.run_id)
    assert run.data.tags["decision"] == "promote"
    assert run.data.metrics["difference"] == 0.1
    assert {item.path for item in tracking.list_artifacts(version.run_id)} >= {"verdict.json", "verdict.md"}
    assert promote("one", folder, verdict, hospital) == version, "again: nothing happens twice"
    assert len(tracking.search_model_versions("name = 'semiflow-site-one'")) == 1
    assert serving("two", hospital).site == "one" == earlier_sites("two", hospital)[-1], "a site without a model has the last adapted site's"
    assert "two" not in earlier_sites("one", hospital)


def test_nothing_is_downloaded_when_it_is_there_and_a_kept_challenger_serves_nobody(hospital, tracking):
    from tasks.champions import fetch, promote, serving

    folder, verdict = challenger(hospital, "two")
    first = promote("two", folder, verdict, hospital)
    own = fetch("two", project=hospital)
    before = (own / "fit" / "fit.json").stat()
    folder, verdict = challenger(hospital, "two", 2)
    kept = promote("two", folder, verdict | {"decision": "keep"}, hospital)
    assert kept.version == 2
    assert serving("two", hospital).version == first.version
    after = (fetch("two", project=hospital) / "fit" / "fit.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert int(tracking.get_model_version_by_alias("semiflow-site-two", "challenger").version) == 2


def test_rollback_goes_back_and_says_why(hospital, tracking):
    from tasks.champions import earlier_sites, fetch, promote, rollback, rolled_back, serving

    folder, verdict = challenger(hospital, "back")
    promote("back", folder, verdict, hospital)
    oldest = (earlier_sites("back", hospital) or ["back"])[0]
    with pytest.raises(DataError, match="the first one cannot be rolled back"):
        rollback(oldest, hospital, reason="none")
    folder, verdict = challenger(hospital, "back", 2)
    second = promote("back", folder, verdict, hospital)
    fetch("back", project=hospital)
    assert rollback("back", hospital, reason="misses small lesions").version == 1 == serving("back", hospital).version
    assert json.loads((hospital / "sites" / "back" / "champion" / "champion.json").read_text())["version"] == 1
    assert int(tracking.get_model_version_by_alias("semiflow-site-back", "previous").version) == second.version
    assert rolled_back("back", second.content, hospital) == "misses small lesions"
    assert rolled_back("back", serving("back", hospital).content, hospital) is None


def test_a_sites_first_champion_goes_back_to_the_one_it_was_judged_against(hospital):
    from tasks.champions import PREVIOUS, at_alias, earlier_sites, promote, registry, rollback, rolled_back, serving

    for site in ("elder", "younger"):
        promote(site, *challenger(hospital, site), hospital)
    first, before = serving("younger", hospital), earlier_sites("younger", hospital)
    assert rollback("younger", hospital, reason="sees ghosts").site == "elder" == serving("younger", hospital).site
    assert json.loads((hospital / "sites" / "younger" / "champion" / "champion.json").read_text())["source"] == "elder"
    assert earlier_sites("younger", hospital) == before, "it keeps its place among the sites"
    assert rolled_back("younger", first.content, hospital) == "sees ghosts"
    folder, verdict = challenger(hospital, "younger", 2)
    with pytest.raises(DataError, match="is now none of its own"):
        promote("younger", folder, verdict | {"champion": first.as_json()}, hospital)
    assert rollback("younger", hospital, reason="no ghosts").version == 1 == serving("younger", hospital).version, "again: forward again"
    rollback("younger", hospital, reason="ghosts after all")
    assert promote("younger", folder, verdict, hospital) == serving("younger", hospital)
    with registry(hospital) as client:
        assert at_alias(client, "younger", PREVIOUS) is None, "what was taken out of service is not what served before"
    assert rollback("younger", hospital, reason="worse").site == "elder"


def test_a_challenger_judged_against_another_champion_is_not_promoted(hospital):
    from tasks.champions import promote, serving

    folder, verdict = challenger(hospital, "raced")
    promote("raced", folder, verdict, hospital)
    folder, verdict = challenger(hospital, "raced", 2)
    with pytest.raises(DataError, match="the next run judges it again"):
        promote("raced", folder, verdict | {"champion": {"model": "semiflow-site-raced", "version": 7}}, hospital)
    assert serving("raced", hospital).version == 1


KILLED = """
import json, os, signal, sys
from pathlib import Path
import mlflow
from tasks import champions
site, moment, project = sys.argv[1], sys.argv[2], Path(sys.argv[3])
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "register":
    mlflow.register_model = die
else:
    real = mlflow.MlflowClient.set_registered_model_alias
    mlflow.MlflowClient.set_registered_model_alias = lambda self, name, alias, version: (
        die() if alias == "champion" else real(self, name, alias, version))
folder = project / "sites" / site / "challenger"
champions.promote(site, folder, json.loads((folder.parent / "verdict.json").read_text()), project)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["register", "champion"])
def test_a_promotion_killed_at_any_moment_leaves_the_old_champion_and_the_next_run_finishes(hospital, tracking, tiny_task, case_of, moment):
    from tasks.champions import fetch, promote, serving

    site = f"kill-{moment}"
    promote(site, *challenger(hospital, site), hospital)
    old = loadable(fetch(site, project=hospital), tiny_task, case_of)
    folder, verdict = challenger(hospital, site, 2)
    write_json(folder.parent / "verdict.json", verdict)
    killed = subprocess.run([sys.executable, "-c", KILLED, site, moment, str(hospital)], cwd=ROOT, env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert serving(site, hospital).version == 1
    np.testing.assert_array_equal(loadable(fetch(site, project=hospital), tiny_task, case_of), old)
    done = promote(site, folder, verdict, hospital)
    assert serving(site, hospital) == done
    assert int(tracking.get_model_version_by_alias(done.name, "previous").version) == 1
    assert len(tracking.search_model_versions(f"name = '{done.name}'")) == 2, "no version twice"
    assert len(tracking.search_runs([tracking.get_run(done.run_id).info.experiment_id], f"tags.site = '{site}'")) == 2, "no run twice"
    loadable(fetch(site, project=hospital), tiny_task, case_of)
