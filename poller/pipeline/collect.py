"""Collecting: read the due windows of a contract in order, and commit each one together with the new watermark."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import NamedTuple

from poller.config import Config
from poller.core.clocks import latest_now, trusted_now
from poller.core.errors import AuthError, PollerError, StateError, StoppedError, is_access_refused
from poller.core.events import Event
from poller.core.gaps import FAILING, Unread, wait_seconds
from poller.core.narrowing import Conduct, present_at
from poller.core.reading import Reading, WindowReader
from poller.core.turns import MOST_OPEN
from poller.core.windows import Window, next_window
from poller.ionos.api import ActivityLog
from poller.pipeline.ahead import ReadAhead, windows_held
from poller.pipeline.clock_guard import ClockGuard
from poller.pipeline.discovery import Discovery
from poller.pipeline.lanes import Lane, Tail, lanes, tried, without_tail
from poller.pipeline.room import MayCome, Room, always
from poller.store.gaps import Gap
from poller.store.parts import Claim
from poller.store.protocols import State
from poller.store.rows import Committed, Contract, Prepared, WindowRead

log = logging.getLogger(__name__)


class PollResult(NamedTuple):
    """The result of one poll of a contract: counts of entries, the failure if any, and the spans that could not be read.

    `new` counts the events that went to the outbox; `gaps` the unreadable spans that nobody has accepted.
    `is_unfinished`: its turn ended before all was read. `is_elsewhere`: another thread or replica has the contract, so nothing
    was done.
    """

    contract: str
    fetched: int = 0
    new: int = 0
    filtered: int = 0
    late: int = 0
    repaired: int = 0
    failure: PollerError | None = None
    gaps: tuple[Gap, ...] = ()
    is_unfinished: bool = False
    is_elsewhere: bool = False


class WindowCommitted(NamedTuple):
    """A committed window: what the API sent, and how much of it went to the outbox.

    `left_out` counts the new entries that another use has delivered already.
    """

    contract: str
    window: Window
    fetched: int
    kept: int
    left_out: int = 0


class Collector:
    """Collects contracts of one or more accounts into the state. For several threads, but only one thread per contract."""

    def __init__(
        self,
        state: State,
        accounts: Mapping[str, ActivityLog],
        config: Config,
        *,
        stop: threading.Event,
        prepare: Callable[[str, Sequence[Event]], Prepared] = lambda contract, events: Prepared(events),
        elsewhere: Callable[[str, Sequence[Event]], Collection[bytes]] = lambda contract, events: (),
        on_window: Callable[[WindowCommitted], None] = lambda done: None,
        until: int | None = None,
        gaps_at_once: int = 1,
        discovery: Discovery | None = None,
        room_may_come: MayCome = always,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`prepare` filters and rewrites the new events of a contract. Events whose identity `elsewhere` names are left out.

        `on_window` is called with each committed window. `until` (unix seconds) ends the reading at that time instead of now.
        `gaps_at_once`: how many due gaps one poll of a contract tries again. `discovery`: an existing one to use.
        `room_may_come`: whether to wait while the outbox is full, or to end with StateUnavailableError.
        """
        self._state = state
        self._accounts = accounts
        self._config = config
        self._stop = stop
        self._prepare = prepare
        self._elsewhere = elsewhere
        self._on_window = on_window
        self._until = until
        self._clock = clock
        slots, most_open = windows_held(config.api.concurrency), config.api.concurrency * MOST_OPEN
        self._limits = config.api.limits(slots)
        self._discovery = discovery or Discovery(state, accounts, config, clock)
        self._clock_guard = ClockGuard(state, config.poll.overlap_seconds)
        self._gaps_at_once = gaps_at_once
        self._claims: dict[str, Claim] = {}
        self._tails: dict[str, Tail] = {}
        room = Room(state, config.outbox.max_bytes, stop, room_may_come)
        self._ahead = ReadAhead(slots, most_open, room.wait, self._hanging_count)

    def discover(self, *, since: int | None = None, only: Iterable[str] = ()) -> tuple[list[str], list[PollerError]]:
        """Find the contracts to collect. New ones begin at `since`, or at the initial look-back.

        A contract that appeared after the last look begins at that look. After `State.request_reread`, known contracts are read
        once more from the requested time. Returns the contracts, longest unpolled first, and the failures by account.
        """
        return self._discovery.discover(since, only)

    def poll(self, contract: str, turn_seconds: float = math.inf) -> PollResult:
        """As `collect`, but hanging polls take turns: without a turn, the contract is left to the next time."""
        with self._claimed(contract) as claim:
            if claim is None or not all(api.admit(contract) for api in self._first_account()):
                return PollResult(contract, is_elsewhere=True)
            try:
                return self._collect(claim, turn_seconds)
            finally:
                for api in self._first_account():
                    api.dismiss(contract)

    def collect(self, contract: str, turn_seconds: float = math.inf) -> PollResult:
        """Read and commit everything of a contract up to now. Does not raise for errors that concern this contract alone.

        If this takes longer than `turn_seconds`, it ends after the window that is being committed, so that others have a turn.

        Raises: StateError, StoppedError.
        """
        with self._claimed(contract) as claim:
            return PollResult(contract, is_elsewhere=True) if claim is None else self._collect(claim, turn_seconds)

    @contextmanager
    def _claimed(self, contract: str) -> Iterator[Claim | None]:
        """The claim on a contract during the block; None if another thread or replica has it."""
        claim = self._state.contracts.claim(contract)
        if claim is None:
            yield None
            return
        self._claims[contract] = claim
        try:
            yield claim
        finally:
            self._claims.pop(contract, None)
            claim.release()

    @property
    def is_busy(self) -> bool:
        """Whether a contract is being collected."""
        return bool(self._claims)

    def abandon(self) -> None:
        """Release all claims. Polls that are still running commit nothing any more."""
        for claim in list(self._claims.values()):
            claim.release()

    def _collect(self, claim: Claim, turn_seconds: float) -> PollResult:
        contract = claim.row.contract
        try:
            row = claim.row._replace(account=self._discovery.account_of(claim.row))
        except PollerError as error:
            return PollResult(contract, failure=error)
        now = self._clock()
        turn_ends_at = time.monotonic() + turn_seconds
        poll = self._collect_from(claim, row, now, turn_ends_at)
        for other in self._discovery.others(contract, row.account):
            if poll.fetched or not is_access_refused(poll.failure):
                break
            poll = self._collect_from(claim, row._replace(account=other), now, turn_ends_at)
            if not is_access_refused(poll.failure):
                log.warning("contract.account_changed", extra={"contract": contract, "account": other})
                self._state.contracts.enrol([contract], other, row.origin, int(now))
        claim.record_poll(int(now), poll.failure.reason if poll.failure else "")
        return poll._replace(gaps=tuple(gap for gap in claim.gaps() if gap.is_open))

    def _collect_from(self, claim: Claim, row: Contract, now: float, turn_ends_at: float) -> PollResult:
        """Collect a contract as its account sees it."""
        api = self._accounts[row.account]
        trusted = self._trusted_now(api, now)
        if self._until is None:
            row = self._clock_guard.check(row, api.clock_skew_seconds, int(trusted))
        poll = PollResult(row.contract)
        # Read up to the later of both clocks, so that entries come early; the watermark follows the earlier clock.
        reach = latest_now(api.clock_skew_seconds, now) if self._until is None else self._until
        settings = self._config.poll
        due = next_window(row.watermark, row.origin, int(reach), settings.overlap_seconds)
        turn = int(now / settings.interval_seconds)
        tail = self._tails.get(row.contract)
        tail_seconds = tail.seconds if tail and tail.is_remembered(time.monotonic()) else 0
        for lane in lanes(claim, row, due, tail_seconds, now, turn, self._gaps_at_once):
            if poll.failure is not None and not lane.is_present:
                continue  # an older span has failed already; only the present is still tried
            poll = self._collect_lane(claim, row, api, lane, now, trusted, poll, turn_ends_at)
        return poll

    def _collect_lane(
        self,
        claim: Claim,
        row: Contract,
        api: ActivityLog,
        lane: Lane,
        now: float,
        trusted: float,
        poll: PollResult,
        turn_ends_at: float,
    ) -> PollResult:
        gap = lane.of_gap
        conduct = self._conduct(row, lane, int(trusted))
        since = conduct.present[-1].start if lane.is_present and self._until is None else math.inf
        left: list[Unread] = []
        turn = self._ahead.turn()
        reader = WindowReader(api, row.contract, self._limits, conduct, turn.take)
        try:
            with closing(self._ahead.read(reader, lane.windows, turn)) as readings:
                kept = tried(readings, lane, left) if conduct.is_trial else without_tail(readings, since, left)
                for window, reading in kept:
                    poll = self._commit(claim, api, lane, window, reading, now, trusted, poll)
                    del reading  # before the next one is read, which may need as much memory
                    if gap is None and time.monotonic() >= turn_ends_at and window.end < lane.windows[-1].end:
                        return poll._replace(is_unfinished=True)
            if lane.of_range is not None:
                claim.end_range(lane.of_range)
            if gap is None:
                self._remember_tail(row.contract, lane, left, now)
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
            if gap is None:
                # The error is kept until all contracts are polled, and its cause holds the unreadable answer.
                error.__cause__ = error.__context__ = None
                return poll._replace(failure=poll.failure or error.with_traceback(None))
            left.append(Unread(lane.windows[0], FAILING, error.message))
        if gap is not None and left:
            wait = wait_seconds(gap.tries + 1, random.random)
            self._state.gaps.record_try(gap.id, left[-1].reason, int(now + wait))
        return poll

    def _conduct(self, row: Contract, lane: Lane, trusted: int) -> Conduct:
        is_failing = bool(row.failure or lane.samples or lane.of_gap)
        is_trial = lane.of_gap is not None and lane.of_gap.is_narrow
        present = present_at(trusted, self._config.poll.overlap_seconds)
        return Conduct(present, is_failing, is_trial, lane.is_exact, lane.samples)

    def _remember_tail(self, contract: str, lane: Lane, tail: Sequence[Unread], now: float) -> None:
        """Have the next poll know of what the API does not serve yet, with room for the time that it took to find its start."""
        if not tail:
            return
        window = Window(tail[0].window.start, lane.windows[-1].end)
        known = self._tails.get(contract)
        if known is None or not known.is_remembered(time.monotonic()):
            hint = "it is collected when the API serves it; check this machine's clock (NTP)"
            extra = {"contract": contract, "span": str(window), "why": tail[-1].reason, "hint": hint}
            log.warning("window.cut_short", extra=extra)
        room = 1 + math.ceil(max(0.0, self._clock() - now))
        seconds = known.seconds if known and window in lane.samples else window.seconds + room
        self._tails[contract] = Tail(seconds, time.monotonic())

    def _commit(
        self,
        claim: Claim,
        api: ActivityLog,
        lane: Lane,
        window: Window,
        reading: Reading,
        now: float,
        trusted: float,
        poll: PollResult,
    ) -> PollResult:
        if self._stop.is_set():
            raise StoppedError("asked to stop")
        contract = poll.contract
        # Each time uses the clock difference measured then, because a clock may have been set in between.
        trusted = min(trusted, self._trusted_now(api, self._clock()))
        read = WindowRead(
            window,
            reading.events,
            reading.fetched,
            int(now),
            advance_to=min(window.end, int(trusted)) if lane.is_present else None,
            of_range=lane.of_range,
            is_repair=lane.is_repair,
            unread=reading.unread,
            next_try_at=int(now + wait_seconds(0, random.random)),
            elsewhere=self._elsewhere(contract, reading.events) if reading.events else (),
        )
        done = claim.commit(read, lambda events: self._prepare(contract, events))
        filtered = done.new_count - done.kept_count
        _tell_of_gaps(done)
        _tell_of_oddities(contract, window, done.unseen)
        level = logging.INFO if done.unseen else logging.DEBUG
        if log.isEnabledFor(level):  # most windows are empty, and are not logged
            log.log(
                level,
                "window.collected",
                extra={
                    "contract": contract,
                    "window": str(window),
                    "fetched": reading.fetched,
                    "new": done.kept_count,
                    "filtered": filtered,
                    "late": done.late,
                },
            )
        left_out = len(done.unseen) - done.new_count
        self._on_window(WindowCommitted(contract, window, reading.fetched, done.kept_count, left_out))
        return poll._replace(
            fetched=poll.fetched + reading.fetched,
            new=poll.new + done.kept_count,
            filtered=poll.filtered + filtered,
            late=poll.late + done.late,
            repaired=poll.repaired + done.repaired,
        )

    def take_part(self, part: float) -> None:
        """Use only this part of `requests_per_second`, above 0 and at most 1: other replicas use the rest."""
        for api in self._first_account():
            api.take_part(part)

    def _hanging_count(self) -> int:
        return sum(api.hanging_count() for api in self._first_account())

    def _first_account(self) -> list[ActivityLog]:
        return [*self._accounts.values()][:1]  # all accounts share turns and pace

    def _trusted_now(self, api: ActivityLog, now: float) -> float:
        """The earlier of our clock and the clock of the API: by both clocks, this time has passed."""
        return trusted_now(api.clock_skew_seconds, now)

    def close(self) -> None:
        self._ahead.close()


def _tell_of_oddities(contract: str, window: Window, unseen: Sequence[Event]) -> None:
    """Warn about new entries without a time, and about different entries with one id."""
    if not unseen:
        return
    extra = {"contract": contract, "window": str(window)}
    if untimed := sum(not event.is_timed for event in unseen):
        hint = "they are taken as of the end of their window; report what meta.time holds"
        log.warning("entries.untimed", extra={**extra, "entries": untimed, "hint": hint})
    if sharing := sum(bool(event.shared_id) for event in unseen):
        hint = "they differ, so each was kept; two entries under one id are a mistake of the API's"
        log.warning("entries.shared_an_id", extra={**extra, "entries": sharing, "hint": hint})


def _tell_of_gaps(done: Committed) -> None:
    for gap in done.opened:
        hint = "all else is collected, and it is tried again; `ionos-poller gaps show` says more"
        log.error(
            "gap.opened",
            extra={
                "contract": gap.contract,
                "gap": gap.id,
                "span": str(gap.window),
                "seconds": gap.window.seconds,
                "kind": gap.kind,
                "why": gap.reason,
                "hint": hint,
            },
        )
    for gap in done.closed:
        log.info("gap.closed", extra={"contract": gap.contract, "gap": gap.id, "span": str(gap.window)})
