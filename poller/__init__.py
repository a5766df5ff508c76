"""ionos-poller: collects the IONOS Cloud Activity Log and delivers it to log receivers.

Holds only the version. `pyproject.toml` reads it from here; `--version` and the metrics show it.
"""

__version__ = "0.1.0"
