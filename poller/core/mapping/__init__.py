"""Changes to an entry before it is sent. Pure: bytes in, bytes out.

`filter` selects entries, `redact` removes confidential fields, `moesif` makes Moesif actions, `ocsf` and `ecs` make events of
those standards (each is a `table` over the `facts` of an entry), and `shorten` makes entries fit.
Nothing here is done unless it is configured: by default a line leaves as the API gave it.
"""

from poller.core.mapping.shorten import (
    SHORTEST_ACTION_BYTES,
    SHORTEST_BYTES,
    SHORTEST_MADE_BYTES,
    format_time_us,
    truncated,
    with_time,
)
from poller.core.mapping.terminal import escaped

__all__ = [
    "SHORTEST_ACTION_BYTES",
    "SHORTEST_BYTES",
    "SHORTEST_MADE_BYTES",
    "escaped",
    "format_time_us",
    "truncated",
    "with_time",
]
