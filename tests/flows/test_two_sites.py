"""Two sites adapt at once: neither waits for the other's lock, and both end with a model of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tiny_hospitals import ROOT, make_project, make_studies


@pytest.mark.slow
def test_two_sites_adapt_side_by_side(tmp_path, prefect_server, monkeypatch):
    from prefect.settings import get_current_settings

    project = make_project(tmp_path / "project")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlruns' / 'mlflow.db'}")
    studies = make_studies(tmp_path / "studies", site_a=5, site_b=5)
    for site in ("site-a", "site-b"):
        (project / "sites" / site).mkdir(parents=True)
        (studies / site).rename(project / "sites" / site / "inbox")
    environment = os.environ | {"SEMIFLOW_PROJECT": str(project), "PREFECT_API_URL": str(get_current_settings().api.url), "PYTHONPATH": str(ROOT),
                                "OMP_NUM_THREADS": "1"}
    runs = {site: subprocess.Popen([sys.executable, "-m", "flows.adapt_site", site], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT) for site in ("site-a", "site-b")}
    said = {site: run.communicate(timeout=420)[0] for site, run in runs.items()}
    for site, run in runs.items():
        assert run.returncode == 0, said[site][-2000:]
        for complaint in ("is locked", "Unable to acquire lock", "is busy"):  # SQLite's, DVC's, ours
            assert complaint not in said[site]

    from tasks.champions import serving
    from tasks.site import Workspace

    for site in runs:
        champion = serving(site, project)
        assert (champion.name, champion.version) == (f"semiflow-site-{site}", 1)
        assert sum(1 for _ in (Workspace(site, project).champion / "fit").rglob("*.safetensors")) > 0
        assert len(Workspace(site, project).roles.read_text().splitlines()) == 1 + 5
