"""What a flow run's page in Prefect shows beside its log: tables, text, pictures, links. They are an account of the run and no part of its work:
where one cannot be kept, the run says so in its log and goes on. Nothing is kept outside a run.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger

#: A picture travels inside the artifact; beyond this it would slow down the page and the server's database.
MAX_PICTURE_BYTES = 1_000_000


def key_of(*words: str) -> str:
    """Words as the key of an artifact: small letters, digits and dashes. Artifacts of one key are versions of one another."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).casefold()).strip("-")


def table(key: str, rows: Sequence[Mapping[str, object]], description: str = "") -> bool:
    """Rows as a table. Returns whether it was kept."""
    return _kept(lambda: create_table_artifact([dict(row) for row in rows], key=key, description=description or None))


def page(key: str, markdown: str, description: str = "") -> bool:
    """A text in Markdown. Returns whether it was kept."""
    return _kept(lambda: create_markdown_artifact(markdown, key=key, description=description or None))


def link(key: str, address: str, text: str, description: str = "") -> bool:
    """A link, for example to an MLflow run (see `mlflow_address`). Returns whether it was kept."""
    return _kept(lambda: create_link_artifact(address, link_text=text, key=key, description=description or None))


def picture(key: str, png: Path, description: str = "") -> bool:
    """A PNG, inside the artifact itself, so that it shows wherever the page is opened. Returns whether it was kept."""
    content = Path(png).read_bytes()
    if len(content) > MAX_PICTURE_BYTES:
        return _kept(lambda: create_markdown_artifact(f"The picture is too large to show here ({len(content) / 1e6:.1f} MB).", key=key))
    address = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return _kept(lambda: create_image_artifact(address, key=key, description=description or None))


def mlflow_address(experiment_id: str, run_id: str) -> str:
    """Where the MLflow UI of `make up` shows a run."""
    from tasks.services import mlflow_page

    return f"{mlflow_page()}/#/experiments/{experiment_id}/runs/{run_id}"


def _kept(create: Callable[[], object]) -> bool:
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return False
    try:
        create()
    except Exception as error:  # whatever the server or the way to it has: the account is lost, the work is not
        get_run_logger().warning("an artifact of this run could not be kept (%s)", type(error).__name__)
        return False
    return True
