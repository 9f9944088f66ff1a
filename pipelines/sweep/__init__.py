"""The sweep: every arm x protocol x shots x site x seed of params' section `sweep`, each fit trained, calibrated and measured in one go.

The train and evaluate stages make one experiment at a time and keep its models; a comparison needs thousands of fits of which only the numbers
matter. Here a worker process trains a fit, measures it and drops the model. A finished fit is a folder of the work folder, named by a key of
everything its numbers depend on (see `pipelines.sweep.keys`), so that a killed sweep goes on, and an added arm, an added shot or an edited system
computes only what is missing.

Output (`<out>`, whole or absent):

- `<arm>-<shots>[-<protocol>]/` (no suffix for `within`): `cases.csv`, `reliability.csv`, `summary.json`, `overlays/` and whatever else
  `pipelines.evaluate` writes for an experiment, in the same format. `cases.csv` has `arm` and `protocol` after `site`, and `case_site` after `case`
  (pooled draws have site "all" and cases of several sites). `summary.json` has also `arm`, `role` (headline | baseline | ablation | control) and
  `sweep: true`; `title` is the arm's, `protocol` the cell's.
- `cost.csv`: arm, shots, protocol, site, seed, train_seconds, predict_seconds (mean over query cases), peak_mb (of the worker process, with all
  libraries and the data it holds, from the start of training to the last measurement), parameters (numbers in the stored tensors; empty where
  a model stores none), model_bytes.
- `missing.csv`, where params ask for it: arm, system, protocol, shots, site, seed, case, label, modalities ("FLAIR+T1w", in the task's order),
  n_modalities, dice (empty where the truth is), ece (foreground band).
- `left_out.csv`: protocol, shots, site, reason; the sites that are too small for some number of shots.

Work folder (`data/<cohort>/sweep`): `<arm>/<protocol>_<shots>_<site>_seed-<seed>_<key>/` with `fit.json` (as the train stage's, with peak_mb and
seconds), `measured/` (the tables of this fit), `missing.csv`, and `model/` for the headline arm. It may be deleted at any time.
"""
