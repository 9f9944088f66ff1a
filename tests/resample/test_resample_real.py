from __future__ import annotations

import numpy as np
import pytest
from synthetic_heads import Source

from pipelines.cohort import cases_of, read_manifest, read_quarantine
from pipelines.resample.foreground import foreground
from pipelines.resample.grid import working_grid
from pipelines.resample.sampling import sample
from pipelines.resample.stage import resample_cohort
from pipelines.resample.volumes import Volume, read_volume

pytestmark = pytest.mark.real_data


def test_a_glioma_case_of_unstripped_heads(real_data, source: Source, make_params, tmp_path):
    folder = next(iter(sorted((real_data / "tcga-lgg").glob("*/sub-*/anat"))), None)
    if folder is None:
        pytest.skip("no tcga-lgg among the real images")
    for path in sorted(folder.glob("*.nii.gz")):
        volume, suffix = read_volume(path), path.name.removesuffix(".nii.gz").split("_")[-1]
        if suffix == "dseg":
            source.label(volume, {1: "1"})
        else:
            source.add(volume, "ceT1w" if "ce-" in path.name else suffix)
    params = make_params(labels=[{"name": "abnormality", "segments": ["1"], "text": "FLAIR abnormality"}], in_plane_mm=1.5)
    resample_cohort(source.write(), tmp_path / "out", params, jobs=1)
    assert read_quarantine(tmp_path / "out").empty
    case, = cases_of(tmp_path / "out")
    label, mask = read_volume(next(folder.glob("*dseg.nii.gz"))), case.foreground()
    kept = case.label().sum() * np.prod(case.spacing_mm) / (label.array.sum() * label.grid.voxel_ml * 1000)
    assert abs(kept - 1) < 0.01 and (mask & (case.label() > 0)).sum() > 0.98 * (case.label() > 0).sum()
    assert 0.2 < mask.mean() < 0.75
    for modality in case.images:
        inside = case.image(modality)[mask]
        assert abs(np.median(inside)) < 0.1 and 0.5 < inside.std() < 2.5
    assert set(read_manifest(tmp_path / "out").slice_axis) == {2}


def test_an_extracted_brain_keeps_its_outline_and_its_lesions(real_data):
    folder = real_data / "open-ms" / "patient19"
    if not folder.is_dir():
        pytest.skip("no open-ms among the real images")
    flair, lesions = read_volume(folder / "FLAIR.nii.gz"), read_volume(folder / "lesions.nii.gz")
    part = Volume(flair.array[:, :, 60:100], flair.grid)  # 40 of 182 slices are enough here
    grid, axis = working_grid(type(flair.grid)(part.array.shape, flair.grid.affine), 1.5)
    volume = Volume(part.array, type(flair.grid)(part.array.shape, flair.grid.affine))
    mask, brain = foreground([sample(volume, grid)], axis), sample(Volume((volume.array > 0).astype(np.float32), volume.grid), grid) > 0.5
    assert 2 * (mask & brain).sum() / (mask.sum() + brain.sum()) > 0.96
    inside = sample(Volume(lesions.array[:, :, 60:100], volume.grid), grid) > 0.5
    assert mask[inside].mean() > 0.99
