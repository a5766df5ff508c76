"""The components that one configuration makes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from poller.config import Config
from poller.core.events import Event
from poller.ionos.api import ActivityLog
from poller.sinks.base import Sink
from poller.store.rows import Prepared


class Components(NamedTuple):
    """What one configuration makes: built anew for each reload. `stop` ends what its clients and sinks are at."""

    config: Config
    stop: threading.Event
    accounts: Mapping[str, ActivityLog]
    sinks: Sequence[Sink]
    token_expiries: Callable[[], Mapping[str, float | None]]
    prepare: Callable[[str, Sequence[Event]], Prepared]
    redactions: Mapping[str, Callable[[bytes], bytes]] = {}  # by sink
