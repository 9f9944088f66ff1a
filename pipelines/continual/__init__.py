"""The continual protocol: sites arrive one after another, and after each of them every site is looked at (params' section `continual`).

Every arm (ITL, its baselines, and what needs all data again: joint training, rehearsal, a model a site) learns the same shots of the same sites in
the same orders with the same seeds, and is judged on the same query cases: what a site's draw leaves over, never a subject that taught.

Output (`<out>`, whole or absent):

- `continual.csv`: method, order ("CS>DU>FG"), seed, after_site, on_site, dice (mean over the site's query cases of the mean over labels), scenario.
- `costs.csv`: scenario, method, order, seed, position (1 is the first site), site, seconds, cpu_seconds (of learning this site alone), model_bytes
  (of the model on disk, with all that it keeps).
- `cases.csv`: scenario, method, order, seed, site, case, label, dice, after the last site.
- `continual.json`: what `pipelines.continual.measures` makes of them, by scenario and method.

Work folder (`data/<cohort>/continual`): a JSON file for every finished unit (scenario x method x seed, all orders), named by a key of everything its
numbers depend on, so that a killed run goes on and an added method computes only what is missing. It may be deleted at any time.
"""
