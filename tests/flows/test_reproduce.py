from __future__ import annotations

import pytest
import yaml

from tasks.dvc_stage import StageFailed


@pytest.fixture
def reproduce(prefect_server):
    """The flow with the session's server."""
    from flows.reproduce import reproduce

    return reproduce


def edit_stage(project, name: str, **changes) -> None:
    graph = yaml.safe_load((project / "dvc.yaml").read_text())
    graph["stages"][name] |= changes
    (project / "dvc.yaml").write_text(yaml.safe_dump(graph))


def test_every_stage_is_a_task_in_the_order_of_the_graph(reproduce, project):
    state = reproduce(project=project, return_state=True)
    assert state.is_completed()
    assert list(state.result()) == ["simulate", "evaluate@semi", "evaluate@unet", "report", "record"]
    assert set(state.result().values()) == {"ran"}
    assert (project / "results.csv").read_text() == "images\nimages\n"
    assert (project / "runs.txt").read_text().strip() == str(state.state_details.flow_run_id), "the record knows its flow run"
    assert set(reproduce(project=project).values()) == {"unchanged"}


def test_a_failed_stage_fails_the_flow_with_its_sentence(reproduce, project):
    edit_stage(project, "report", cmd="echo 'error: reports/cohorts is empty; evaluate first' >&2; exit 1")
    state = reproduce(project=project, return_state=True)
    assert state.is_failed()
    assert "reports/cohorts is empty; evaluate first" in state.message
    with pytest.raises(StageFailed):
        state.result()
    assert not (project / "runs.txt").exists(), "nothing runs after a failure"


def test_a_crash_is_tried_again(reproduce, project):
    edit_stage(project, "report", cmd="if [ -e ../tried ]; then echo done > results.csv; else touch ../tried; kill -9 $$; fi")
    assert reproduce(project=project)["report"] == "ran"


def test_an_unknown_cohort_fails_before_any_stage(reproduce, project):
    state = reproduce(cohort="nope", project=project, return_state=True)
    assert state.is_failed()
    assert "there is no cohort 'nope'" in state.message
    assert not (project / "data").exists()
