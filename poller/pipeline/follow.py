"""Following: new entries of several contracts, round after round, directly from the API. No state is read or written.

Shown entries are remembered as far back as `poll.overlap`, which each round reads again for late entries.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import NamedTuple

from poller.config import Config
from poller.core.clocks import latest_now, trusted_now
from poller.core.errors import PollerError, is_access_refused
from poller.core.events import Event
from poller.core.gaps import FAILING, REFUSED, Unread, without
from poller.core.narrowing import Conduct, present_at
from poller.core.reading import Split, WindowReader
from poller.core.windows import Window, tile
from poller.ionos.api import ActivityLog
from poller.pipeline.discovery import warn_if_incomplete

_DISCOVERY_SECONDS = 600.0
_MICROSECONDS = 1_000_000


class Followed(NamedTuple):
    """An event that was not shown before."""

    contract: str
    event: Event


class _Followed:
    """One contract. `readers`: the accounts that may read it, in the order in which they are asked. `reached`: the time up to
    which it was read; `shown` and `refused`: the shown events, and the refused or failed windows. `is_failing`: the last round
    failed.
    """

    def __init__(self, readers: list[ActivityLog], reached: int) -> None:
        self.readers = readers
        self.reached = reached
        self.shown: dict[bytes, int] = {}
        self.refused: list[Window] = []
        self.is_failing = False


class Follower:
    """Follows the contracts that the accounts list, or those of `only`, from `since` (unix seconds) on. For one thread."""

    def __init__(
        self,
        accounts: Mapping[str, ActivityLog],
        config: Config,
        since: int,
        only: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._accounts = accounts
        self._config = config
        self._since = since
        self._only = only
        self._clock = clock
        self._contracts: dict[str, _Followed] = {}
        self._discover_at = 0.0
        self.failures: list[PollerError] = []
        """The failures of the last round. The next round tries again."""
        self.unread: list[tuple[str, Unread]] = []
        """The unreadable parts of the last round, by contract."""

    @property
    def is_any_read(self) -> bool:
        """Whether any contract could be read."""
        return any(row.reached > self._since for row in self._contracts.values())

    def round(self) -> Iterator[Followed]:
        """The new entries, oldest first; errors are in `failures`.  Raises: StoppedError."""
        self.failures, self.unread = [], []
        now = self._clock()
        if now >= self._discover_at:
            self._discover()
            self._discover_at = 0.0 if self.failures else now + _DISCOVERY_SECONDS
        streams = [self._new(contract, row, now) for contract, row in self._contracts.items()]
        return heapq.merge(*streams, key=lambda found: found.event.time_us)

    def _discover(self) -> None:
        """Ask every account for its contracts. Named contracts are followed even if no list shows them."""
        found: dict[str, list[ActivityLog]] = {}
        for name, api in self._accounts.items():
            try:
                listed = api.contracts()
                warn_if_incomplete(name, listed)
                for contract in listed:
                    found.setdefault(contract, []).append(api)
            except PollerError as error:
                if len(self._accounts) > 1:
                    error.message = f"account {name}: {error.message}"
                self.failures.append(error)
        settings = self._config.poll
        for contract in self._only or settings.contracts:
            found.setdefault(contract, [*self._accounts.values()])
        for contract, readers in found.items():
            if settings.wants(contract, self._only):
                row = self._contracts.setdefault(contract, _Followed([], self._since))
                row.readers += [api for api in readers if api not in row.readers]

    def _new(self, contract: str, row: _Followed, now: float) -> Iterator[Followed]:
        """The new entries of a contract, through the first account that may read it."""
        failure: PollerError | None = None
        for api in row.readers:
            before = row.reached
            failure = yield from self._read(contract, row, api, now)
            if row.reached > before or not is_access_refused(failure):
                row.readers = [api, *(other for other in row.readers if other is not api)]
                break
        row.is_failing = failure is not None
        if failure is not None:
            failure.contract = failure.contract or contract
            self.failures.append(failure)

    def _read(
        self, contract: str, row: _Followed, api: ActivityLog, now: float
    ) -> Generator[Followed, None, PollerError | None]:
        """The new entries of a contract through an account.  Returns: the error that ended it early, if any."""
        overlap = self._config.poll.overlap_seconds
        end = int(latest_now(api.clock_skew_seconds, now))
        start = max(self._since, row.reached - overlap)
        trusted = int(trusted_now(api.clock_skew_seconds, now))
        conduct = Conduct(present_at(trusted, overlap), is_failing=row.is_failing)
        reader = WindowReader(api, contract, self._config.api.limits(), conduct)
        span = Window(start, max(start, end))
        todo = [part for piece in without(span, row.refused) for part in tile(piece)][::-1]
        try:
            while todo:
                window = todo.pop()
                reading = reader.read(window)
                if isinstance(reading, Split):
                    todo.extend(reversed(reading.windows))
                    continue
                self.unread += [(contract, unread) for unread in reading.unread]
                row.refused += [unread.window for unread in reading.unread if unread.kind in (REFUSED, FAILING)]
                again_us = (window.end - overlap) * _MICROSECONDS
                for event in reading.events:
                    if event.identity not in row.shown:
                        if event.time_us >= again_us:  # the next round reads it again
                            row.shown[event.identity] = event.time_us
                        yield Followed(contract, event)
                row.reached = max(row.reached, window.end)
        except PollerError as error:
            return error
        finally:
            again = row.reached - overlap
            row.shown = {identity: at for identity, at in row.shown.items() if at >= again * _MICROSECONDS}
            row.refused = [window for window in row.refused if window.end > again]
        return None
