"""A project whose stages are real but take no time, and free ports."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path) -> Path:
    """A DVC project in the shape of this one (evaluate per experiment, then report and record), with cmds that only write a file."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    shutil.copytree(ROOT / "conf", folder / "conf")
    stages = {
        "simulate": {"cmd": "mkdir -p data && echo images > data/images.txt", "outs": ["data/images.txt"]},
        "evaluate": {"foreach": ["semi", "unet"], "do": {
            "cmd": "mkdir -p reports && cp data/images.txt reports/${item}.txt", "deps": ["data/images.txt"], "outs": ["reports/${item}.txt"]}},
        "report": {"cmd": "cat reports/semi.txt reports/unet.txt > results.csv", "deps": ["reports/semi.txt", "reports/unet.txt"],
                   "outs": ["results.csv"]},
        "record": {"cmd": "printenv SEMIFLOW_FLOW_RUN_ID > runs.txt", "deps": ["results.csv"], "outs": ["runs.txt"]},
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=folder, check=True)
    return folder


@pytest.fixture
def free_port():
    """A function that finds a port of this machine that nobody listens to."""
    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find
