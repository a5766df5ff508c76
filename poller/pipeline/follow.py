"""Following: what is new of several contracts, round after round, straight from the API. No state is read or written.

What was shown is remembered as far back as `poll.overlap`, which each round reads again for entries that come late.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from poller.config import Config
from poller.core.errors import PollerError
from poller.core.events import Event
from poller.core.gaps import Unread
from poller.core.reading import WindowReader
from poller.core.windows import Window
from poller.ionos.api import ActivityLog

_DISCOVERY_SECONDS = 600.0
_MICROSECONDS = 1_000_000


class Followed(NamedTuple):
    """An event that was not shown before."""

    contract: str
    event: Event


class _Followed:
    """One contract: through which account it is read, up to when that was done, and what was shown since then."""

    def __init__(self, api: ActivityLog, reached: int) -> None:
        self.api = api
        self.reached = reached
        self.shown: dict[bytes, int] = {}


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
        """What failed in the last round; it is tried again in the next one."""
        self.unread: list[tuple[str, Unread]] = []
        """What the API showed in the last round and cannot be read, by contract."""

    @property
    def is_any_read(self) -> bool:
        """Whether there is a contract that could be read."""
        return any(row.reached > self._since for row in self._contracts.values())

    def round(self) -> Iterator[Followed]:
        """What is new, oldest first; what fails is in `failures`.  Raises: StoppedError."""
        self.failures, self.unread = [], []
        now = self._clock()
        if now >= self._discover_at:
            self._discover()
            self._discover_at = 0.0 if self.failures else now + _DISCOVERY_SECONDS
        streams = [self._new(contract, row, now) for contract, row in self._contracts.items()]
        return heapq.merge(*streams, key=lambda found: found.event.time_us)

    def _discover(self) -> None:
        """Ask every account which contracts it sees. What is named is followed though no list shows it."""
        found: dict[str, ActivityLog] = {}
        for name, api in self._accounts.items():
            try:
                for contract in api.contracts():
                    found.setdefault(contract, api)
            except PollerError as error:
                if len(self._accounts) > 1:
                    error.message = f"account {name}: {error.message}"
                self.failures.append(error)
        settings = self._config.poll
        for contract in self._only or settings.contracts:
            found.setdefault(contract, next(iter(self._accounts.values())))
        for contract, api in found.items():
            if settings.wants(contract, self._only) and contract not in self._contracts:
                self._contracts[contract] = _Followed(api, self._since)

    def _new(self, contract: str, row: _Followed, now: float) -> Iterator[Followed]:
        overlap = self._config.poll.overlap_seconds
        end = int(max(now, now - (row.api.clock_skew_seconds or 0.0)))
        start = max(self._since, row.reached - overlap)
        again_us = (end - overlap) * _MICROSECONDS
        if start >= end:
            return
        api = self._config.api
        reader = WindowReader(row.api, contract, api.limits())
        try:
            for reading in reader.read_all(Window(start, end)):
                self.unread += [(contract, unread) for unread in reading.unread]
                for event in reading.events:
                    if event.identity not in row.shown:
                        if event.time_us >= again_us:  # the next round reads it again
                            row.shown[event.identity] = event.time_us
                        yield Followed(contract, event)
        except PollerError as error:
            error.contract = error.contract or contract
            self.failures.append(error)
            return
        row.reached = end
        row.shown = {identity: at for identity, at in row.shown.items() if at >= again_us}
