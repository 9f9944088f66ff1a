"""DICOMweb, C-GET and C-MOVE against a real archive: the same files, and one clear sentence for each thing that is wrong."""

from __future__ import annotations

import pytest

from tasks.pacs.archive import open_archive
from tasks.pacs.config import load_pacs

KINDS = ("dicomweb", "get", "move")


@pytest.mark.parametrize("kind", KINDS)
def test_echo_find_and_retrieve(pacs, desk, kind, make_study):
    config = pacs.config(desk.folder, kind)
    with open_archive(load_pacs(config)) as archive:
        archive.echo()
        studies = archive.find_studies(load_pacs(config).query)
    assert sorted(study.instances for study in studies) == [6, 6]
    summary = desk.fetch(config)
    assert dict(summary.studies) == {"whole": 2}
    assert (summary.fetched, summary.refused, summary.unfinished) == (12, 0, [])
    assert sorted(desk.files().values()) == sorted(ds.PixelData for name in ("Alice", "Bob") for ds in make_study(name))


def test_protocols_give_the_same_files(pacs, desk):
    for kind in KINDS:
        desk.fetch(pacs.config(desk.folder, kind), out=kind)
    web, get, move = (desk.files(kind) for kind in KINDS)
    assert len(web) == 12
    assert web == get == move
