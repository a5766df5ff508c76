"""The Activity Log without HTTP: its entries are a list of seconds, and a test moves its clock."""

from __future__ import annotations

from bisect import bisect_left, insort

from poller.core.answers import Page
from poller.core.errors import AuthError, PollerError, RejectedError, TransientError
from poller.core.events import Event
from poller.core.listing import ContractList
from poller.core.windows import Window

H = 3600
BEGAN = 1_800_000_000 // H * H + 1260  # within an hour

# The API's answers for a contract that an account may not read.
DENIALS = (
    AuthError("denied (403)", is_denied=True),
    AuthError("refused (401)"),
    RejectedError("unknown (404)", status=404),
)


class Log:
    """An API with an entry at each second of a list, and a clock that a test moves."""

    clock_skew_seconds = 0.0

    def __init__(self, *contracts: str) -> None:
        self.seconds = {contract: list(range(BEGAN - 24 * H, BEGAN + 24 * H, 60)) for contract in contracts}
        self.now = float(BEGAN)
        self.refused: Window | None = None
        self.rejected: Window | None = None
        self.rejection: PollerError = RejectedError("not this second", status=400)
        self.requests = 0

    def hanging_count(self) -> int:
        return 0

    def contracts(self) -> ContractList:
        return ContractList(list(self.seconds))

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        self.requests += 1
        if self.refused and self.refused.start <= window.start < self.refused.end:
            raise TransientError("not now")
        if self.rejected and window.start < self.rejected.end and self.rejected.start < window.end:
            raise self.rejection
        seconds = self.seconds[contract]
        shown = seconds[bisect_left(seconds, window.start) : bisect_left(seconds, min(window.end, self.now))]
        events = tuple(
            Event(second * 1_000_000, b"%d" % second + b"0" * 6, b"{}") for second in shown[offset : offset + limit]
        )
        return Page(events, len(shown), is_capped=False, weight_bytes=2 * len(events), is_mended=False)

    def show(self, contract: str, second: int) -> None:
        """Make an entry of this second visible."""
        insort(self.seconds[contract], second)
