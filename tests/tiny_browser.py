"""A browser for tests: the pages of servers as a person sees them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

BROWSER, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1600,1200")
PAGE_S = 60  # the UI is several MB of JavaScript, and CI machines are slow


@contextlib.contextmanager
def headless(profile: Path) -> Iterator:
    """A headless Chromium with a fresh profile in `profile`. Its absence is a failure in CI, a skip elsewhere."""
    if not (shutil.which(BROWSER) and shutil.which(DRIVER)):
        message = f"no browser: {BROWSER} and {DRIVER} are needed (Debian: apt-get install chromium chromium-driver)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


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
