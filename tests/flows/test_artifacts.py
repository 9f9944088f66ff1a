"""What a run's page shows: kept inside a run, nothing outside one, and no run fails for it."""

from __future__ import annotations

import pytest


@pytest.fixture
def kept(prefect_server):
    """A function that runs another inside a flow run and gives what the server then has under a key."""
    from prefect import flow, get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    def run(show, key: str) -> list:
        flow(name="shows")(show)()
        with get_client(sync_client=True) as client:
            return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))

    return run


def test_tables_text_and_links(kept):
    from tasks import artifacts

    [table] = kept(lambda: artifacts.table("numbers", [{"case": "sub-1", "dice": 0.5}], "of one case") and None, "numbers")
    assert "sub-1" in table.data
    [page] = kept(lambda: artifacts.page("story", "# promoted") and None, "story")
    assert page.data == "# promoted"
    [link] = kept(lambda: artifacts.link("model", artifacts.mlflow_address("1", "abc"), "the run") and None, "model")
    assert "http://127.0.0.1:5000/#/experiments/1/runs/abc" in link.data


def test_a_picture_travels_inside(kept, tmp_path):
    from matplotlib import pyplot

    from tasks import artifacts

    pyplot.imsave(tmp_path / "overlay.png", [[0, 1], [1, 0]])
    [picture] = kept(lambda: artifacts.picture("overlay", tmp_path / "overlay.png") and None, "overlay")
    assert picture.data.startswith("data:image/png;base64,iVBOR")
    (tmp_path / "large.png").write_bytes(b"0" * (artifacts.MAX_PICTURE_BYTES + 1))
    [note] = kept(lambda: artifacts.picture("large", tmp_path / "large.png") and None, "large")
    assert "too large" in note.data


def test_outside_a_run_and_with_a_broken_server_nothing_happens(kept, caplog):
    from tasks import artifacts

    assert artifacts.page("story", "nobody reads this") is False
    said = []
    kept(lambda: said.append(artifacts.page("Not A Key!", "text")), "none")
    assert said == [False]


def test_keys_are_what_prefect_takes():
    from tasks.artifacts import key_of

    assert key_of("Drift", "site_b", "FLAIR") == "drift-site-b-flair"
