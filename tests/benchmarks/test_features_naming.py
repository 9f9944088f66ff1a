"""Naming without labels: the finding's words are the cohort's, tissues are compared with the template, snapshots are found in order."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from benchmarks import feature_naming as naming
from benchmarks.feature_template import template_tissues
from pipelines.cohort import Case
from pipelines.errors import UsageError
from pipelines.evaluate.metrics import dice


def test_mixture_orders_tissues_by_grey_level():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, (6, 30, 30))
    brain = np.ones(truth.shape, bool)
    brain[:, :5] = False
    found = naming.mixture_tissues(np.array([-2.0, 0.0, 1.0])[truth] + 0.1 * generator.normal(size=truth.shape), brain)
    assert (found[brain] == truth[brain]).mean() > 0.99 and not found[~brain].any()


def test_snapshots_in_order_of_steps(tmp_path):
    for name in ("step-10000", "step-002000", "step-final", "log"):
        (tmp_path / name).mkdir()
    assert list(naming.snapshots(tmp_path)) == [2000, 10000]
    with pytest.raises(UsageError, match="no folder named step-<number>"):
        naming.snapshots(tmp_path / "log")


def test_template_lies_on_real_brains(real_data, tmp_path):
    path = real_data / "open-ms" / "patient07" / "T1.nii.gz"
    if not path.is_file():
        pytest.skip("no open-ms/patient07 among the real images")
    image = nibabel.load(path)
    thinner = nibabel.Nifti1Image(np.asarray(image.dataobj, np.float32)[::2, ::2, ::2], image.affine @ np.diag([2, 2, 2, 1]))
    nibabel.save(thinner, tmp_path / "T1.nii.gz")
    volume = np.moveaxis(thinner.get_fdata(dtype=np.float32), 2, 0)
    brain = volume > 0
    case = Case("1", "", "A", (2.0, 2.0, 2.0), 2, {"T1w": tmp_path / "T1.nii.gz"}, brain)
    maps, mixture = template_tissues(case), naming.mixture_tissues(volume, brain)
    scores = [dice(brain & (maps == tissue), brain & (mixture == tissue)) for tissue in range(3)]
    assert min(scores[1:]) > 0.6, f"grey and white matter against the template: {scores}"
