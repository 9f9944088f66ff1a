"""Where servers listen, which are started here, and where models are recorded: this machine alone, unless somebody says otherwise."""

from __future__ import annotations

import pytest

from pipelines.errors import UsageError

VARIABLES = ("SEMIFLOW_HOST", "PREFECT_API_URL", "PREFECT_PORT", "MLFLOW_PORT", "MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI")


@pytest.fixture
def wanted(monkeypatch, tmp_path):
    """A function that says what `up` would start with these variables, by name."""
    from tasks.services import services

    def find(*, flows: bool = True, **variables: str):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return {service.name: service for service in services(tmp_path, flows=flows)}

    return find


def test_everything_listens_to_this_machine_alone(wanted):
    found = wanted()
    assert list(found) == ["prefect", "mlflow", "flows"]
    for name in ("prefect", "mlflow"):
        command = found[name].command
        assert command[command.index("--host") + 1] == "127.0.0.1"
    assert [service.page for service in found.values()] == ["http://127.0.0.1:4200", "http://127.0.0.1:5000", "http://127.0.0.1:4200/deployments"]


def test_another_address_has_to_be_one(wanted, capsys, monkeypatch):
    from tasks import services

    found = wanted(SEMIFLOW_HOST="10.0.0.5")
    assert found["prefect"].page == "http://10.0.0.5:4200"
    command = found["mlflow"].command
    assert "10.0.0.5:5000" in command[command.index("--allowed-hosts") + 1], "MLflow refuses names that it was not told"
    for everywhere in ("0.0.0.0", "::", "our-server"):
        with pytest.raises(UsageError, match="give the one IP address"):
            wanted(SEMIFLOW_HOST=everywhere)
    wanted(SEMIFLOW_HOST="10.0.0.5")
    monkeypatch.setattr(services, "start_all", lambda *_: None)
    services.up()
    assert "warning: whoever reaches 10.0.0.5 can read and change everything" in capsys.readouterr().out
    wanted()
    services.up()
    assert "warning" not in capsys.readouterr().out


def test_servers_that_run_elsewhere_are_not_started(wanted):
    found = wanted(PREFECT_API_URL="http://10.0.0.5:4200/api", MLFLOW_TRACKING_URI="http://10.0.0.5:5000")
    assert list(found) == ["flows"]
    assert found["flows"].environment["PREFECT_API_URL"] == "http://10.0.0.5:4200/api"
    assert list(wanted(PREFECT_API_URL="http://127.0.0.1:4200/api")) == ["prefect", "mlflow", "flows"], "that is ours"
    assert list(wanted(flows=False)) == ["prefect", "mlflow"]


def test_a_database_is_spoken_to_by_its_server_alone(wanted, tmp_path):
    from tasks.environment import tracking_uri

    mlflow = wanted()["mlflow"]
    assert mlflow.environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{tmp_path}/mlruns/mlflow.db" == tracking_uri(tmp_path)
    assert "--default-artifact-root" in mlflow.command
    mlflow = wanted(MLFLOW_BACKEND_STORE_URI="postgresql://us:sesame@db/mlflow")["mlflow"]
    assert tracking_uri(tmp_path) == "http://127.0.0.1:5000"
    assert "--artifacts-destination" in mlflow.command
    assert not any("sesame" in argument for argument in mlflow.command), "command lines are public"


def test_ports_are_checked(wanted):
    with pytest.raises(UsageError, match="PREFECT_PORT is 'x'"):
        wanted(PREFECT_PORT="x")
