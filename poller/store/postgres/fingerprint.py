"""A short text that is the same for configurations that treat entries in the same way, on whatever machine they are."""

from __future__ import annotations

import hashlib
import json

from poller.config import Config

_OF_A_MACHINE = ("state_dir", "http")


def fingerprint(config: Config) -> str:
    """Of all that is in effect, but for what a machine has for itself. Holds no secret, nor the digest of one."""
    from poller.config.describe import effective

    tree = json.loads(effective(config, as_json=True))
    chosen = {key: value for key, value in tree.items() if key not in _OF_A_MACHINE}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]
