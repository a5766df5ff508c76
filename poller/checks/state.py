"""Checks of the state: the findings of its backend, and the clock, the replicas and the gaps of each use."""

from __future__ import annotations

import time
from collections.abc import Iterator

from poller.checks import Finding, from_error, warn
from poller.core.errors import StateError
from poller.core.gaps import summary
from poller.store.protocols import Stores


def check_state(stores: Stores, max_bytes: int) -> Iterator[Finding]:
    """Check the whole state. `max_bytes` is the outbox's limit."""
    for found in stores.diagnose(max_bytes):
        yield Finding(found.level, found.name, found.message, found.hint, found.exit_code)
        if found.use:
            yield from check_use(stores, found.use)


def check_use(stores: Stores, use: str) -> Iterator[Finding]:
    """Warn of problems of one use: a wrong clock, replicas that differ, gaps that are not accepted."""
    try:
        overview = stores.snapshot(use)
    except StateError as error:
        yield from from_error(f"state {use}", error)
        return
    hint = "keep this machine's clock right: `timedatectl set-ntp true`"
    yield from (warn(f"state {use}", line, hint) for line in overview.clock_troubles(time.time()))
    hint = "compare `ionos-poller config show` on each machine"
    yield from (warn(f"state {use}", line, hint) for line in overview.replica_troubles())
    gaps = [gap.window for gap in overview.gaps if gap.is_open]
    if gaps:
        hint = f"`ionos-poller gaps list --use {use}` shows them, `gaps accept` takes one as it is"
        yield warn(f"gaps {use}", f"{summary(gaps)} cannot be read; all else is collected", hint)
