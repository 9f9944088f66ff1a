"""The fingerprint of a cohort: what is in it, how alike its images are, and what somebody should look at before anything is trained on it.

Modelled on nnU-Net's data fingerprint (Isensee et al., Nature Methods 2021), with sites, scanners, labels and duplicates added.
"""

from pipelines.ingest.fingerprint.describe import describe, describe_label
from pipelines.ingest.fingerprint.stage import FILE, fingerprint, write_fingerprint

__all__ = ["FILE", "describe", "describe_label", "fingerprint", "write_fingerprint"]
