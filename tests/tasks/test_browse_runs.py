"""The record as a person meets it: the MLflow UI in a real browser, on the store that the recorder wrote."""

from __future__ import annotations

import os
import shutil
import socket

import pytest

BROWSER, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1600,1200")
PAGE_S = 60  # the UI is several MB of JavaScript, and CI machines are slow

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium with a fresh profile. Its absence is an error in CI, a skip elsewhere."""
    if not (shutil.which(BROWSER) and shutil.which(DRIVER)):
        message = f"no browser: {BROWSER} and {DRIVER} are needed (Debian: apt-get install chromium chromium-driver)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


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


def wait_for(browser, what, message: str):
    from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    try:
        return WebDriverWait(browser, PAGE_S, ignored_exceptions=[StaleElementReferenceException]).until(what, message)
    except TimeoutException as error:
        raise AssertionError(f"{message}; the page says: {text_of(browser)[:2000]}") from error


def text_of(browser) -> str:
    from selenium.webdriver.common.by import By

    return browser.find_element(By.TAG_NAME, "body").text


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
