"""When things run: Prefect flows. May import tasks and pipelines; nothing imports flows."""

import tasks  # noqa: F401  (sets Prefect's offline defaults before a flow module imports Prefect)
