"""Every stage explains itself and refuses misuse with one sentence: exit status 2 for a wrong command, 1 for data that do not allow it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE_OUT = ["--source", "{here}/none", "--out", "{here}/out"]
COMMANDS = {
    "phantoms": ["--out", "{here}/out"],
    "ingest": SOURCE_OUT,
    "resample": SOURCE_OUT,
    "prompts": SOURCE_OUT,
    "embed": [*SOURCE_OUT, "--prompts", "{here}/none"],
    "train": [*SOURCE_OUT, "--prompts", "{here}/none", "--embeddings", "{here}/none", "--experiment", "semi-1"],
    "evaluate": [*SOURCE_OUT, "--prompts", "{here}/none", "--embeddings", "{here}/none", "--models", "{here}/none", "--experiment", "semi-1"],
    "report": SOURCE_OUT,
}


def run(stage: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"pipelines.{stage}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def refused(process: subprocess.CompletedProcess, status: int) -> str:
    assert process.returncode == status, process.stderr
    assert "Traceback" not in process.stderr + process.stdout
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize("stage", COMMANDS)
def test_help_teaches(stage):
    process = run(stage, "--help")
    assert process.returncode == 0
    assert "--out" in process.stdout
    assert "python -m pipelines." in process.stdout, "the help shows an example"


@pytest.mark.parametrize("stage", [name for name in COMMANDS if name != "phantoms"])
def test_a_source_that_is_not_there(stage, tmp_path):
    process = run(stage, *(part.format(here=tmp_path) for part in COMMANDS[stage]))
    assert process.returncode in (1, 2)
    assert "none" in refused(process, process.returncode)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", [name for name in COMMANDS if name != "report"])
def test_wrong_params_stop_every_stage_before_it_starts(stage, tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text((ROOT / "params.yaml").read_text().replace("in_plane_mm: 1.5", "in_plane_mm: wide\n  in_plain_mm: 1.5"))
    line = refused(run(stage, *(part.format(here=tmp_path) for part in COMMANDS[stage]), "--params", str(params)), 2)
    assert "2 problem(s)" in line and "resample.in_plane_mm" in line and "resample.in_plain_mm" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["--sauce", "x"]])
def test_a_command_that_cannot_be_understood(arguments):
    process = run("ingest", *arguments)
    assert process.returncode == 2
    assert "Traceback" not in process.stderr + process.stdout
