"""The record as a person meets it: the MLflow UI in a real browser, on the store that the recorder wrote."""

from __future__ import annotations

import socket

import pytest
from tiny_browser import headless, text_of, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with headless(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def ui(recorded, store, tmp_path, monkeypatch):
    """The MLflow UI as `make up` starts it, on the session's store. Its address."""
    from tasks.services import services, start_all, stop_all

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_PORT", str(probe.getsockname()[1]))
    [mlflow] = [service for service in services(tmp_path) if service.name == "mlflow"]
    start_all([mlflow], tmp_path)
    yield mlflow.page
    assert stop_all(tmp_path) == ["mlflow"]


def test_runs_metrics_and_overlay_are_there_to_see(browser, ui, recorded, tracking):
    from selenium.webdriver.common.by import By

    run = tracking.get_run(recorded["experiments"]["random-forest-2"]["run"]).info
    runs = f"{ui}/#/experiments/{run.experiment_id}/runs"

    browser.get(runs)
    expander = f".ag-row[row-id='{recorded['run']}'] [col-id='attributes.`Run Name`'] button"  # children are folded under their parent
    wait_for(browser, lambda page: page.find_elements(By.CSS_SELECTOR, expander), "the list shows no parent run")[0].click()
    wait_for(browser, lambda page: "tiny random-forest-1" in text_of(page) and "tiny random-forest-2" in text_of(page), "the list shows no child run")

    browser.get(f"{runs}/{run.run_id}")
    wait_for(browser, lambda page: "dice.low" in text_of(page) and "0.7" in text_of(page), "the child run shows no Dice")

    browser.get(f"{runs}/{run.run_id}/artifacts/figures/tiny_random-forest-2_overlay.png")
    image = wait_for(browser, lambda page: next((image for image in page.find_elements(By.CSS_SELECTOR, "img")
                                                 if (image.get_attribute("src") or "").startswith(("blob:", "data:", ui))
                                                 and int(image.get_attribute("naturalWidth") or 0) == 20), None), "no overlay image is drawn")
    assert int(image.get_attribute("naturalHeight")) == 24
