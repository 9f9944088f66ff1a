"""What tests share: where real images may lie, and fixtures that several folders use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.cli import collect_seldom
from tests import tiny_kept

collect_seldom()  # as every command of the project does
# Stages compute on one thread a process, because sums in another order differ in the last bit; so do tests that compare with them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
#: Files that take a minute or more, the longest first: where tests run in several processes, all are then busy until the end. A process that is
#: given a file of one test is given the next file too, at once, so a short one stands where a long one would wait for the end of the day.
LONGEST = ("test_day_in_the_life.py", "test_faults.py", "test_serve.py", "test_artifacts.py", "test_adapt_site.py", "test_two_sites.py",
           "test_services_postgres.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others in their order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def kept_in_this_run(tmp_path_factory) -> None:
    """One place for all processes of the run (pytest removes it with the run's other folders)."""
    own = tmp_path_factory.getbasetemp()
    tiny_kept.PLACE[:] = [(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "kept"]


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """One Prefect server with a database of its own for every flow that tests run in this process."""
    import tasks  # noqa: F401  (offline defaults, before Prefect reads them)

    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, or a skip with the reason."""
    folder = Path(os.environ.get("SEMIFLOW_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder.name}/ (set SEMIFLOW_DATA to a folder that holds them)")
    return folder
