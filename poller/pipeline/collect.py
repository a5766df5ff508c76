"""Collecting: read the windows of a contract that are due, in order, and commit each with the progress it means."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

from poller.api import ActivityLog
from poller.clocks import latest_now, trusted_now
from poller.config import Config
from poller.errors import AuthError, PollerError, StateError, StoppedError
from poller.events import Event
from poller.pipeline.ahead import ReadAhead
from poller.pipeline.audit import Auditor, Difference, NoTotalsError, parts_of
from poller.pipeline.clock_guard import ClockGuard
from poller.pipeline.discovery import Discovery, is_access_refused
from poller.reading import Limits, Reading, WindowReader
from poller.store import State
from poller.store.contracts import Commit, Contract, Range
from poller.turns import MOST_OPEN
from poller.windows import Window, next_window, tile

log = logging.getLogger(__name__)

_MICROSECONDS = 1_000_000


class Prepared(NamedTuple):
    """The events to keep, perhaps rewritten, and how many of the others were left out for which reason."""

    kept: Sequence[Event]
    filtered: Mapping[str, int] = {}


class Poll(NamedTuple):
    """How the poll of one contract ended: counts of entries, the failure if there was one, and what could not be read.

    `new` are those that went to the outbox; `incomplete` are single seconds that hold more than the API serves.
    """

    contract: str
    fetched: int = 0
    new: int = 0
    filtered: int = 0
    late: int = 0
    repaired: int = 0
    failure: PollerError | None = None
    incomplete: tuple[Window, ...] = ()


class Done(NamedTuple):
    """A window that was committed: what the API sent for it, and what of it went to the outbox."""

    contract: str
    window: Window
    fetched: int
    kept: int


class _Lane(NamedTuple):
    """A row of windows to be read in order: those up to now, or those of a span that is read once more."""

    windows: list[Window]
    of_range: int | None
    is_repair: bool


class Collector:
    """Collects contracts of one or more accounts into the state. Safe to use from several threads, a contract from one."""

    def __init__(
        self,
        state: State,
        accounts: Mapping[str, ActivityLog],
        config: Config,
        *,
        stop: threading.Event,
        prepare: Callable[[str, Sequence[Event]], Prepared] = lambda contract, events: Prepared(events),
        not_elsewhere: Callable[[str, Sequence[Event]], Sequence[Event]] = lambda contract, events: events,
        on_window: Callable[[Done], None] = lambda done: None,
        until: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`prepare` filters and rewrites the new events of a contract, those that `not_elsewhere` leaves of the unseen ones.

        `on_window` is told of each window that was committed. `until` (unix seconds) ends the reading there instead of now.
        """
        self._state = state
        self._accounts = accounts
        self._config = config
        self._stop = stop
        self._prepare = prepare
        self._not_elsewhere = not_elsewhere
        self._on_window = on_window
        self._until = until
        self._clock = clock
        concurrency = config.api.concurrency
        # More than are read at once: some are read already, and wait for their turn to be committed.
        slots = concurrency + concurrency // 2
        self._limits = Limits(
            config.api.page_size,
            config.api.result_window,
            max(1024 * 1024, config.api.window_bytes // slots),
        )
        self._discovery = Discovery(state, accounts, config, clock)
        self._clock_guard = ClockGuard(state, config.poll.overlap_seconds)
        self._ahead = ReadAhead(slots, concurrency * MOST_OPEN, self._wait_for_room, self._hanging_count)

    def discover(self, *, since: int | None = None, only: Iterable[str] = ()) -> tuple[list[str], list[PollerError]]:
        """Find the contracts to collect, and begin with those that are new from `since` or the initial look-back.

        One that appears since the last look begins there. Where the state has been asked to read again (`State.ask_since`),
        known ones are read once more from there, too. Returns the contracts, those first that were collected longest ago, and
        what failed account by account.
        """
        return self._discovery.discover(since, only)

    def collect(self, contract: str) -> Poll:
        """Read and commit everything of a contract up to now. Never raises for what concerns this contract alone.

        Raises: StateError, StoppedError.
        """
        row = self._state.contracts.get(contract)
        if row is None:
            raise ValueError(f"contract {contract} was not discovered")
        now = self._clock()
        poll = self._collect_from(row, now)
        for other in self._discovery.others(contract, row.account):
            if poll.fetched or not is_access_refused(poll.failure):
                break
            poll = self._collect_from(row._replace(account=other), now)
            if not is_access_refused(poll.failure):
                log.warning("contract.account_changed", extra={"contract": contract, "account": other})
                self._state.contracts.enrol([contract], other, row.origin, int(now))
        self._state.contracts.record_poll(contract, int(now), poll.failure.reason if poll.failure else "")
        return poll

    def _collect_from(self, row: Contract, now: float) -> Poll:
        """Collect a contract as its account sees it."""
        api = self._accounts[row.account]
        trusted = self._trusted_now(api, now)
        if self._until is None:
            row = self._clock_guard.check(row, api.clock_skew_seconds, int(trusted))
        poll = Poll(row.contract)
        for lane in self._lanes(row, api, now):
            if poll.failure is not None and lane.of_range is not None:
                continue  # the API had its chance with an older span; only the present is tried as well
            poll = self._collect_lane(row, api, lane, now, trusted, poll)
        failure = poll.failure or (_too_dense(row.contract, poll.incomplete[0]) if poll.incomplete else None)
        return poll._replace(failure=failure)

    def _lanes(self, row: Contract, api: ActivityLog, now: float) -> Iterator[_Lane]:
        for span in self._state.contracts.ranges(row.contract):
            yield _Lane(list(tile(span.window)), span.id, span.purpose == "repair")
        # Read as far as either clock says, so that nothing comes later than it must; the watermark believes the earlier.
        reach = latest_now(api.clock_skew_seconds, now) if self._until is None else self._until
        window = next_window(row.watermark, row.origin, int(reach), self._config.poll.overlap_seconds)
        if window is not None:
            yield _Lane(list(tile(window)), None, is_repair=False)

    def _collect_lane(
        self, row: Contract, api: ActivityLog, lane: _Lane, now: float, trusted: float, poll: Poll
    ) -> Poll:
        is_held = False  # the watermark stays behind a second that could not be read whole
        reader = WindowReader(api, row.contract, self._limits)
        try:
            with closing(self._ahead.read(reader, lane.windows)) as readings:
                for window, reading in readings:
                    if not reading.is_complete:
                        is_held = True
                        poll = poll._replace(incomplete=(*poll.incomplete, window))
                        log.error(
                            "window.incomplete",
                            extra={
                                "contract": row.contract,
                                "window": str(window),
                                "fetched": reading.fetched,
                            },
                        )
                    poll = self._commit(row, api, lane, window, reading, now, trusted, poll, is_held=is_held)
        except StateError:  # not the contract's
            raise
        except PollerError as error:
            error.contract = error.contract or row.contract
            log.log(
                logging.ERROR if isinstance(error, AuthError) else logging.WARNING,
                "contract.failed",
                extra={
                    "contract": row.contract,
                    "account": row.account,
                    "why": error.message,
                    "hint": error.hint,
                },
            )
            return poll._replace(failure=poll.failure or error)
        return poll

    def _commit(
        self,
        row: Contract,
        api: ActivityLog,
        lane: _Lane,
        window: Window,
        reading: Reading,
        now: float,
        trusted: float,
        poll: Poll,
        *,
        is_held: bool,
    ) -> Poll:
        if self._stop.is_set():
            # After a reload another collector may read this contract: two would both find the same entries unseen.
            raise StoppedError("asked to stop")
        contracts = self._state.contracts
        unseen = contracts.unseen(row.contract, reading.events)
        if untimed := sum(not event.is_timed for event in unseen):
            hint = "they are taken as of the end of their window; report the form of meta.time"
            log.warning(
                "entries.untimed",
                extra={"contract": row.contract, "window": str(window), "entries": untimed, "hint": hint},
            )
        fresh = self._not_elsewhere(row.contract, unseen) if unseen else unseen
        kept, filtered = self._prepare(row.contract, fresh) if fresh else Prepared(fresh)
        late, repaired = 0, len(unseen) if lane.is_repair else 0
        if lane.of_range is None and (old := [event for event in unseen if _is_before(event, row.watermark)]):
            late, repaired = _late_and_repaired(old, contracts.ranges(row.contract))
        # Both times with the difference of the clocks as it was told then: a clock may have been set in between.
        trusted = min(trusted, self._trusted_now(api, self._clock()))
        contracts.commit_window(
            Commit(
                row.contract,
                window,
                reading.fetched,
                unseen,
                len(fresh),
                kept,
                int(now),
                advance_to=None if is_held or lane.of_range is not None else min(window.end, int(trusted)),
                of_range=None if is_held else lane.of_range,
                late=late,
                repaired=repaired,
                filtered=filtered,
            )
        )
        log.log(
            logging.INFO if unseen else logging.DEBUG,
            "window.collected",
            extra={
                "contract": row.contract,
                "window": str(window),
                "fetched": reading.fetched,
                "new": len(kept),
                "filtered": len(fresh) - len(kept),
                "late": late,
            },
        )
        self._on_window(Done(row.contract, window, reading.fetched, len(kept)))
        return poll._replace(
            fetched=poll.fetched + reading.fetched,
            new=poll.new + len(kept),
            filtered=poll.filtered + len(fresh) - len(kept),
            late=poll.late + late,
            repaired=poll.repaired + repaired,
        )

    def admit(self, contract: str) -> bool:
        """Whether a poll of a contract may begin now, which then is to be `dismiss`ed: those that hang take turns."""
        return all(api.admit(contract) for api in self._first_account())

    def dismiss(self, contract: str) -> None:
        """The poll of a contract is over."""
        for api in self._first_account():
            api.dismiss(contract)

    def _hanging_count(self) -> int:
        return sum(api.hanging_count() for api in self._first_account())

    def _first_account(self) -> list[ActivityLog]:
        return [*self._accounts.values()][:1]  # they share their turns

    def _wait_for_room(self) -> None:
        """Wait while the outbox is full: the API keeps what is not collected yet."""
        is_told = False
        while self._state.outbox.size().bytes >= self._config.outbox.max_bytes:
            if not is_told:
                log.warning("outbox.full", extra={"max_bytes": self._config.outbox.max_bytes})
                is_told = True
            if self._stop.wait(0.2):
                raise StoppedError("asked to stop")
        if is_told:
            log.warning("outbox.has_room")
        if self._stop.is_set():
            raise StoppedError("asked to stop")

    def audit(self, contract: str, span: Window, *, by_reading: bool = False) -> list[Difference]:
        """The hours of a span in which the API and the ledger disagree, oldest first, from where collecting began.

        Closed hours are compared by totals, the hour that is not over entry by entry, which costs a request a page.
        `by_reading`: where the API gives no totals, closed hours are read as well. That costs as many requests as collecting
        them.  Raises: AuthError, TransientError, RejectedError, StateError, StoppedError.
        """
        row = self._known(contract)
        parts = parts_of(span, row.origin, self._clock(), self._config.poll.overlap_seconds)
        if parts.compared is None:
            return []
        auditor = self._auditor(row)

        def read(part: Window) -> list[Difference]:
            counts = self._state.contracts.counts(contract, part.start, part.end)
            return auditor.read(part, counts, lambda events: self._state.contracts.unseen(contract, events))

        found: list[Difference] = []
        if (closed := parts.closed) is not None:
            try:
                found += auditor.compare(closed, self._state.contracts.counts(contract, closed.start, closed.end))
            except NoTotalsError:
                if not by_reading:
                    raise
                found += read(closed)
        return found + read(parts.open) if parts.open is not None else found

    def count_roughly(self, contract: str, span: Window) -> tuple[int, bool]:
        """How many entries the API holds in a span, and whether that is all of them, not only at least so many.

        Raises: AuthError, TransientError, RejectedError, StoppedError.
        """
        return self._auditor(self._known(contract)).count_roughly(span)

    def _known(self, contract: str) -> Contract:
        row = self._state.contracts.get(contract)
        if row is None:
            raise ValueError(f"contract {contract} is not in the state")
        return row

    def _auditor(self, row: Contract) -> Auditor:
        if row.account not in self._accounts:
            hint = "put it back into the configuration, or audit the other contracts by name with --contract"
            raise PollerError(f"its account {row.account} is not configured", contract=row.contract, hint=hint)
        return Auditor(self._accounts[row.account], row.contract, self._limits)

    def repair(self, differences: Iterable[Difference]) -> int:
        """Have the hours with missing entries read once more, at the next poll of their contract.

        Returns how many entries that concerns. Hours whose identities were pruned are left alone: reading them again
        would repeat what was delivered.
        """
        wanted = [difference for difference in differences if difference.missing and not difference.forgotten]
        for difference in wanted:
            self._state.contracts.add_range(difference.contract, difference.window, "repair")
        return sum(difference.missing for difference in wanted)

    def _trusted_now(self, api: ActivityLog, now: float) -> float:
        """The earlier of our clock and the API's: up to there, neither doubts that the time has passed."""
        return trusted_now(api.clock_skew_seconds, now)

    def close(self) -> None:
        self._ahead.close()


def _is_before(event: Event, watermark: int) -> bool:
    return event.is_timed and event.time_us < watermark * _MICROSECONDS


def _late_and_repaired(old: Sequence[Event], pending: Sequence[Range]) -> tuple[int, int]:
    """How many of these entries, all older than the watermark, are late, and how many an audit asked for.

    What lies in a span that is still to be read is not late: nobody called that complete.
    """
    seconds = [event.time_us // _MICROSECONDS for event in old]
    asked = [{span.purpose for span in pending if span.window.start <= second < span.window.end} for second in seconds]
    return sum(not purposes for purposes in asked), sum("repair" in purposes for purposes in asked)


def _too_dense(contract: str, window: Window) -> PollerError:
    return PollerError(
        f"{window} holds more entries than the API serves; what it serves was collected, the watermark stays before it",
        contract=contract,
        hint="raise api.result_window if the API allows more, or ask IONOS for the entries of that second",
    )
