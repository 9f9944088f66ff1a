"""A killed stage leaves nothing that could be taken for whole, and its finished items are not done again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from pipelines.outputs import staged_file, staged_folder, write_json, write_text


def test_folder_appears_only_when_whole(tmp_path):
    final = tmp_path / "out"
    with pytest.raises(RuntimeError), staged_folder(final) as work:
        (work / "half").write_text("half")
        raise RuntimeError
    assert not final.exists()
    with staged_folder(final) as work:
        assert not list(work.iterdir())
        (work / "whole").write_text("whole")
    assert [path.name for path in final.iterdir()] == ["whole"]


def test_an_older_folder_is_replaced_whole(tmp_path):
    for name in ("old", "new"):
        with staged_folder(tmp_path / "out") as work:
            (work / name).write_text(name)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


@pytest.mark.parametrize(("inputs", "kept"), [("same", True), ("other", False)])
def test_a_killed_writer_is_resumed_for_the_same_inputs_only(tmp_path, inputs, kept):
    final = tmp_path / "out"
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from pipelines.outputs import staged_folder, write_text
        with staged_folder(Path(sys.argv[1]), inputs="same") as work:
            write_text(work / "first", "done")
            print("ready", flush=True)
            time.sleep(60)
    """)
    process = subprocess.Popen([sys.executable, "-c", script, str(final)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "ready"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not final.exists()
    with staged_folder(final, inputs=inputs) as work:
        assert (work / "first").exists() == kept
        write_text(work / "second", "done")
    assert {path.name for path in final.iterdir()} == ({"first", "second"} if kept else {"second"})


def test_a_resumed_folder_loses_the_half_written_files_of_the_killed(tmp_path):
    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "out", inputs="same") as folder:
        (folder / "below").mkdir()
        for name in ("whole.txt", ".4711.half.txt", "below/.12.half.nii.gz", "below/.hidden"):
            (folder / name).write_text("x")
        raise KeyboardInterrupt
    with staged_folder(tmp_path / "out", inputs="same"):
        pass
    left = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert left == {"whole.txt", "below/.hidden"}


def test_a_second_writer_waits_for_the_first(tmp_path):
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from pipelines.outputs import staged_folder
        with staged_folder(Path(sys.argv[1])) as work:
            print("in", flush=True)
            time.sleep(0.5)
            (work / sys.argv[2]).write_text("x")
        print("out", flush=True)
    """)
    first = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out"), "a"], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline().strip() == "in"
    started = time.monotonic()
    second = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out"), "b"], capture_output=True, text=True, check=True)
    assert "waiting" in second.stdout or time.monotonic() - started > 0.5
    assert first.wait() == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


def test_file_is_whole_or_absent(tmp_path):
    final = tmp_path / "a.json"
    with pytest.raises(TypeError):
        write_json(final, {"x": object()})
    with pytest.raises(RuntimeError), staged_file(final) as path:
        path.write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    write_text(final, "whole")
    assert final.read_text() == "whole"
