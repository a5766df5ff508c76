"""A short text that is the same for configurations that treat entries in the same way, also on different machines."""

from __future__ import annotations

import hashlib
import json

from poller.config import Config

_OF_A_MACHINE = ("state_dir", "http", "state")  # each machine may reach the database in its own way


def fingerprint(config: Config) -> str:
    """The fingerprint of all effective values except those of one machine. Contains no secret, and no digest of one."""
    from poller.config.describe import effective

    tree = json.loads(effective(config, as_json=True))
    chosen = {key: value for key, value in tree.items() if key not in _OF_A_MACHINE}
    chosen["lease"] = tree["state"]["lease"]
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]
