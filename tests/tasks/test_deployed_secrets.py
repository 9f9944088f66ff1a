"""Secrets of a PACS from Prefect's blocks: only what is named, only where the environment has none."""

from __future__ import annotations

import os


def test_a_block_fills_a_variable_that_is_not_set(prefect_server, tmp_path, monkeypatch, capsys, caplog):
    from prefect.blocks.system import Secret

    from tasks.deployed import fill_secrets

    file = tmp_path / "mine.yaml"
    file.write_text("kind: dicomweb\nauth: {kind: basic, user: us, password: {env: PACS_PASSWORD}}\nproxy: {token: {env: NOWHERE_TOKEN}}\n")
    for name in ("PACS_PASSWORD", "NOWHERE_TOKEN", "OTHER_SECRET"):
        monkeypatch.setenv(name, "")
    Secret(value="sesame").save("pacs-password")
    Secret(value="another").save("other-secret")
    assert fill_secrets([file, tmp_path / "gone.yaml"]) == ["PACS_PASSWORD"]
    assert os.environ["PACS_PASSWORD"] == "sesame"
    assert not os.environ["OTHER_SECRET"]
    Secret(value="changed").save("pacs-password", overwrite=True)
    assert fill_secrets([file]) == []
    assert os.environ["PACS_PASSWORD"] == "sesame", "the environment wins"
    said = capsys.readouterr()
    assert "sesame" not in said.out + said.err + caplog.text
