"""A study in, a DICOM segmentation out: what a model makes of one patient, on the slices that it was made of, with a verdict on whether to trust it.

`study` one study, ingested and resampled as the cohorts are; `bundle` the model; `back` its answer on the grid of the original images; `qc` whether
to trust it; `seg` and `codes` the objects that go to the archive; `picture` a slice to look at; `run` all of it in order.
"""
