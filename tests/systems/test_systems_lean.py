"""MONAI without its optional companions: quick to import, whole enough for what is used here, and no trace left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.systems.lean import absent

IN_A_NEW_PROCESS = """
import importlib.util, sys
from pipelines.systems.lean import UNUSED, load_monai
load_monai()
assert not set(UNUSED) & set(sys.modules), set(UNUSED) & set(sys.modules)
from monai.losses import DiceCELoss
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from monai.networks.nets import UNet
assert all(importlib.util.find_spec(name) for name in UNUSED)
"""


def test_monai_comes_alone_and_the_others_can_be_imported_afterwards():
    subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS], cwd=Path(__file__).parents[2], check=True)


def test_absent_hides_what_was_not_imported_and_nothing_else():
    sys.modules.pop("this", None)
    with absent("this", "json"):
        with pytest.raises(ModuleNotFoundError):
            import this  # noqa: F401
        import json  # imported before: stays
    assert json is sys.modules["json"]
    assert "this" not in sys.modules
