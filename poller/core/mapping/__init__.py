"""What may be done to an entry on its way out. Pure: bytes in, bytes out.

`filter` says which entries go on, `redact` takes out of them what must not be known, `moesif` makes actions of them, `ocsf` and
`ecs` events of those standards (each is a `table` over what `facts` finds in an entry), `shorten` makes them fit.
Nothing here is done unless it was asked for: by default a line leaves as the API gave it.
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
