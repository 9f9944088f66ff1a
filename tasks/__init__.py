"""The outside world: running a DVC stage, recording to MLflow, keeping services up. May import pipelines, never flows.

Importing this package sets the offline defaults of the tools it drives, which they read when they are imported themselves, and lets Python collect
garbage less often, because these tools are large and a flow's process does not live long.
"""

from pipelines.cli import collect_seldom
from tasks import environment

environment.apply()
collect_seldom()
