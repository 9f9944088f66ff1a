"""The flow around the look: what a run's page and message say, and what it does for sites that have nothing yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path


def test_a_site_without_a_workspace_is_no_failure(prefect_server, project):
    from flows.drift import drift

    state = drift("site-a", project=project, return_state=True)
    assert state.is_completed()
    assert state.message == "no-champion: site-a has no workspace yet; run adapt_site once cases have arrived."


def test_an_unknown_site_is_named(prefect_server, project):
    from flows.drift import look_at

    with pytest.raises(UsageError, match=r"no site 'nope' in service\.sites; it has site-a, site-b"):
        look_at.fn("nope", project)


def test_a_finding_is_the_message_of_the_run(prefect_server, project):
    from tiny_drift import tiny_site

    from flows.drift import drift

    tiny_site(project / "sites", shifted=True, scanner="New One")
    state = drift("site-b", project=project, return_state=True)
    assert state.message.startswith("drift: The 5 latest patients of site-b differ")
    assert state.result()["verdict"] == "drift"
