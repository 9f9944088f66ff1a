"""The embed stage on a real Dask cluster of two worker processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from embed_cohort import ROOT, add_images, contents

from pipelines.backbones.atlas import Atlas
from pipelines.cohort import read_quarantine, write_manifest
from pipelines.embed.stage import embed
from pipelines.errors import DataError, UsageError

dask = pytest.importorskip("dask", reason="the Dask cluster is optional: pip install distributed")
distributed = pytest.importorskip("distributed", reason="the Dask cluster is optional: pip install distributed")


def local(workers: int):
    return distributed.LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0", host="127.0.0.1")


@pytest.fixture(scope="module")
def cluster():
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), local(2) as cluster:
        yield cluster


def test_the_cluster_computes_and_the_bytes_are_those_of_one_process(cohort, atlas, cluster, tmp_path, monkeypatch):
    source, prompts, out, rows = cohort
    for number in range(3, 10):
        add_images(source, rows, f"{number:02d}")
    (source / rows[0]["path"]).write_bytes(b"no image")
    write_manifest(source, rows)
    embed(source, prompts, tmp_path / "alone", atlas)
    with monkeypatch.context() as here:
        here.setattr(Atlas, "encode_image", lambda *_: pytest.fail("an image was encoded here, not by a worker"))
        outcome = embed(source, prompts, out, atlas, dask=cluster.scheduler_address)
    assert (outcome.new, outcome.refused) == (17, 1)
    assert read_quarantine(out).code.tolist() == ["changed"]
    assert contents(out) == contents(tmp_path / "alone")
    assert embed(source, prompts, out, atlas, dask=cluster.scheduler_address).reused == 17


def test_a_worker_that_cannot_write_is_said_so(cohort, atlas, cluster):
    source, prompts, out, _ = cohort
    embed(source, prompts, out, atlas)
    for path in (out / "images").iterdir():
        path.unlink()
        path.mkdir()  # nothing can be moved over a folder
    with pytest.raises(DataError, match=r"cannot be written.*what is finished is kept"):
        embed(source, prompts, out, atlas, dask=cluster.scheduler_address)


class Deadly:
    """A backbone that takes its worker down, as the kernel does when memory runs out."""

    levels, fingerprint = {"fine": (8, 2)}, "deadly"

    def encode_image(self, *_):
        os._exit(1)


def test_a_single_worker_of_one_thread_computes_too(cohort, atlas, monkeypatch):
    source, prompts, out, _ = cohort
    monkeypatch.setattr(Atlas, "encode_image", lambda *_: pytest.fail("an image was encoded here, not by a worker"))
    with local(1) as cluster:
        assert embed(source, prompts, out, atlas, dask=cluster.scheduler_address).new == 4


DIED = r"workers of tcp://\S+ died at their work .*what is finished is kept"


def test_the_last_worker_dies(cohort):
    source, prompts, out, _ = cohort
    with local(1) as cluster, pytest.raises(DataError, match=DIED):
        embed(source, prompts, out, Deadly(), dask=cluster.scheduler_address)


def test_workers_that_see_other_folders_are_refused(cohort, atlas, cluster, monkeypatch):
    source, prompts, out, _ = cohort
    monkeypatch.setattr("pipelines.embed.work._sees", lambda paths: False)  # sent by value: what a worker elsewhere would answer
    with pytest.raises(DataError, match=r"2 of 2 workers of tcp://.* do not see"):
        embed(source, prompts, out, atlas, dask=cluster.scheduler_address)


def test_a_wrong_address_is_said_so(cohort, atlas, monkeypatch):
    source, prompts, out, _ = cohort
    monkeypatch.setattr("pipelines.embed.work.CONNECT_SECONDS", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(UsageError, match=f"no Dask scheduler answers at {address}"):
            embed(source, prompts, out, atlas, dask=address)


def test_a_cluster_without_workers_is_said_so(cohort, atlas):
    source, prompts, out, _ = cohort
    with local(0) as empty, pytest.raises(UsageError, match="has no worker"):
        embed(source, prompts, out, atlas, dask=empty.scheduler_address)


def test_an_image_kills_its_workers(cohort, cluster):
    source, prompts, out, _ = cohort
    with pytest.raises(DataError, match=DIED):
        embed(source, prompts, out, Deadly(), dask=cluster.scheduler_address)


def test_dask_is_not_imported_unless_asked_for():
    code = "import sys, pipelines.embed.stage, pipelines.embed.work, joblib; print([name for name in ('dask', 'distributed') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"
