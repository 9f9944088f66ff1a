"""The outside world: running a DVC stage, recording to MLflow, keeping services up. May import pipelines, never flows.

Importing this package sets the offline defaults of the tools it drives, which they read when they are imported themselves.
"""

from tasks import environment

environment.apply()
