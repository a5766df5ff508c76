"""The state against a model of plain lists and sets: legal actions in any order, with restarts and crashes.

The same runs on every backend. If replicas can share a state, there is a second one, leases end, a replica goes on after it lost
its contracts, and answers to COMMIT are lost.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from poller.config import load
from poller.core.errors import LeaseLostError, StateUnavailableError
from poller.core.events import Event, OutboxEvent
from poller.core.identity import IDENTITY_BYTES
from poller.core.windows import Window
from poller.store import segments
from poller.store.journal import FORGET_SINK, Action, Person
from poller.store.opening import stores_of
from poller.store.protocols import State
from poller.store.rows import DeadLetter, Prepared, WindowRead
from poller.store.sqlite import State as FileState
from poller.store.sqlite import ledger
from tests.postgres import Server, debian_programs
from tests.states import claim_all, claimed, next_batch, postpone, taken

HOUR = 3600
START = 100 * HOUR
CONTRACTS = ("1", "2")
SINKS = ("a", "b", "c")
# So small that a few events need several chunks, segments and batches.
CHUNK_IDENTITIES = 3
SEGMENT_EVENTS = 3
# Hundreds of states are opened. The test needs no real disk, so it uses memory.
MEMORY = "/dev/shm"


class Item(NamedTuple):
    """An event as a sink receives it."""

    contract: str
    identity: bytes
    line: bytes


def item_of(event: OutboxEvent) -> Item:
    return Item(event.contract, event.identity, event.line)


class ContractModel:
    """What must be true of a contract."""

    def __init__(self) -> None:
        self.origin = START
        self.watermark = START
        self.fetched = self.new = self.seen = self.filtered = 0
        self.known: dict[bytes, int] = {}  # identity -> hour
        self.counts: dict[int, int] = {}  # hour -> number of entries ever collected
        self.ranges: list[tuple[Window, str]] = []


class SinkModel:
    """What must be true of a sink: the waiting events, in order, and its books."""

    def __init__(self) -> None:
        self.waiting: list[Item] = []
        self.assigned = self.delivered = self.dead = 0


def an_event(number: int, hour: int) -> Event:
    """An event by its number: the same entry in every read, always with the same time or always without one."""
    second = START + hour * HOUR + number
    return Event(second * 1_000_000, b"%016d" % (number + 1000 * hour), b'{"n":%d}' % number, is_timed=number != 3)


EVENTS = st.lists(
    st.builds(an_event, st.integers(0, 6), st.integers(-2, 3)),
    max_size=8,
    unique_by=lambda event: event.identity,
).map(lambda events: sorted(events, key=lambda event: (event.time_us, event.identity)))


@contextmanager
def small_parts() -> Iterator[None]:
    before = ledger._CHUNK_IDENTITIES, segments.MAX_EVENTS
    ledger._CHUNK_IDENTITIES, segments.MAX_EVENTS = CHUNK_IDENTITIES, SEGMENT_EVENTS
    try:
        yield
    finally:
        ledger._CHUNK_IDENTITIES, segments.MAX_EVENTS = before


class StoreMachine(RuleBasedStateMachine):
    """Each rule does one legal thing to the state and to the model; the invariants compare the two."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = small_parts()
        self.parts.__enter__()
        self.state: Any = self._open()
        self.now = START
        self.contracts: dict[str, ContractModel] = {}
        self.sinks: dict[str, SinkModel] = {}
        self.letters: list[tuple[str, Item]] = []

    def _open(self) -> State:
        """Open the state. The first time it is created."""
        raise NotImplementedError

    def _hold(self) -> None:
        """Put all contracts into the share of this process."""

    def _remembered(self, contract: str) -> set[bytes]:
        """Every identity in the ledger, read directly from its stored form."""
        raise NotImplementedError

    def _lies_there(self) -> tuple[int, int, int]:
        """The events and bytes of all segments, and the bytes of all dead letters, counted one by one."""
        raise NotImplementedError

    def teardown(self) -> None:
        self.state.close()
        self.parts.__exit__(None, None, None)

    @initialize()
    def begin(self) -> None:
        self.enrol("1")
        self.register("a")

    # Collecting

    @rule(contract=st.sampled_from(CONTRACTS))
    def enrol(self, contract: str) -> None:
        self.state.contracts.enrol([contract], "default", START, START)
        self.contracts.setdefault(contract, ContractModel())
        self._hold()

    @rule(
        contract=st.sampled_from(CONTRACTS),
        events=EVENTS,
        filtered=st.integers(0, 2),
        repeats=st.integers(0, 2),
        seconds=st.integers(1, 2 * HOUR),
        advance=st.sampled_from(["not", "end", "past", "back"]),
    )
    def commit(
        self, contract: str, events: list[Event], filtered: int, repeats: int, seconds: int, advance: str
    ) -> None:
        model = self.contracts.get(contract)
        if model is None:
            return
        window = Window(max(model.origin, model.watermark - HOUR), model.watermark + seconds)
        advance_to = {"not": None, "end": window.end, "past": window.end + 999, "back": window.start}[advance]
        self._commit(contract, model, window, events, filtered, repeats, advance_to, None)
        if advance_to is not None:
            model.watermark = max(model.watermark, min(advance_to, window.end))

    @rule(contract=st.sampled_from(CONTRACTS), start=st.integers(-5, 5), hours=st.integers(1, 4))
    def add_range(self, contract: str, start: int, hours: int) -> None:
        model = self.contracts.get(contract)
        if model is None:
            return
        window = Window(START + start * HOUR, START + (start + hours) * HOUR)
        self.state.contracts.add_range(contract, window, "since")
        if not any(left.start <= window.start and left.end >= window.end for left, _ in model.ranges):
            model.ranges.append((window, "since"))
        if window.end >= model.origin:
            model.origin = min(model.origin, window.start)

    @precondition(lambda self: any(model.ranges for model in self.contracts.values()))
    @rule(data=st.data(), events=EVENTS, share=st.integers(1, 3))
    def commit_piece_of_range(self, data: st.DataObject, events: list[Event], share: int) -> None:
        contract = data.draw(st.sampled_from([name for name, model in self.contracts.items() if model.ranges]))
        model = self.contracts[contract]
        span = data.draw(st.sampled_from(self.state.contracts.ranges(contract)))
        window = Window(span.window.start, span.window.start + max(1, span.window.seconds // share))
        self._commit(contract, model, window, events, 0, 0, None, span.id)
        model.ranges.remove((span.window, span.purpose))
        if window.end < span.window.end:
            model.ranges.append((Window(window.end, span.window.end), span.purpose))

    def _commit(
        self,
        contract: str,
        model: ContractModel,
        window: Window,
        events: list[Event],
        filtered: int,
        repeats: int,
        advance_to: int | None,
        of_range: int | None,
    ) -> None:
        unseen = self.state.contracts.unseen(contract, events)
        assert unseen == [event for event in events if event.identity not in model.known]
        kept = unseen[filtered:]
        left_out = {"some": min(1, len(unseen) - len(kept)), "others": max(0, len(unseen) - len(kept) - 1)}
        read = WindowRead(window, events, len(events) + repeats, self.now, advance_to=advance_to, of_range=of_range)
        with claimed(self.state, contract) as claim:
            done = claim.commit(read, lambda fresh: Prepared(fresh[filtered:], left_out))
        assert (list(done.unseen), done.kept_count) == (unseen, len(kept))
        self._enter(contract, model, read, unseen, kept)

    def _enter(
        self, contract: str, model: ContractModel, read: WindowRead, unseen: Sequence[Event], kept: Sequence[Event]
    ) -> None:
        """Apply a commit to the model."""
        for event in unseen:
            hour = event.time_us // (HOUR * 1_000_000)
            model.known[event.identity] = hour
            model.counts[hour] = model.counts.get(hour, 0) + 1
        model.fetched += read.fetched
        model.seen += read.fetched - len(unseen)
        model.new += len(kept)
        model.filtered += len(unseen) - len(kept)
        for sink in self.sinks.values():
            sink.waiting += [Item(contract, event.identity, event.line) for event in kept]
            sink.assigned += len(kept)

    @rule(retention=st.integers(0, 3 * HOUR), overlap=st.sampled_from([0, 600, 2 * HOUR]))
    def prune(self, retention: int, overlap: int) -> None:
        self.state.prune(retention, overlap, self.now)
        for contract, model in self.contracts.items():
            pending = [window.start for window, _ in model.ranges]
            before = min([min(self.now, model.watermark) - retention, model.watermark - overlap, *pending]) // HOUR
            # Older identities may still be in the ledger (a chunk is removed as a whole), so they are read from the state.
            remembered = self._remembered(contract)
            assert {identity for identity, hour in model.known.items() if hour >= before} <= remembered
            assert remembered <= set(model.known)
            model.known = {identity: hour for identity, hour in model.known.items() if identity in remembered}

    @rule(seconds=st.integers(1, 3 * HOUR))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    # Delivering

    @rule(sink=st.sampled_from(SINKS))
    def register(self, sink: str) -> None:
        self.state.outbox.register(sink, "file")
        self.sinks.setdefault(sink, SinkModel())

    @rule(sink=st.sampled_from(SINKS))
    def forget(self, sink: str) -> None:
        # As a person does it: the entry in the journal shows other replicas that the database did not lose the sink.
        by = Action(Person(1, "anna"), FORGET_SINK, sink)
        assert self.state.outbox.forget(sink, by=by) == (sink in self.sinks)
        self.sinks.pop(sink, None)

    @precondition(lambda self: any(sink.waiting for sink in self.sinks.values()))
    @rule(data=st.data(), max_events=st.integers(1, 9), max_bytes=st.integers(1, 100), dead_every=st.integers(2, 9))
    def settle(self, data: st.DataObject, max_events: int, max_bytes: int, dead_every: int) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, sink in self.sinks.items() if sink.waiting)))
        place = self.state.outbox.take(name)
        assert place is not None
        events = self._batch(data, name, place, max_events, max_bytes)
        count = data.draw(st.integers(1, len(events)))
        dead = events[:count][dead_every - 1 :: dead_every]
        place.settle(count, dead=[DeadLetter(event, 400, "refused") for event in dead], now=self.now)
        place.release()
        self._settled(name, events[:count], dead)

    def _batch(
        self, data: st.DataObject, name: str, place: Any, max_events: int, max_bytes: int = 10**6
    ) -> Sequence[OutboxEvent]:
        """The next batch, of all contracts or of one postponed contract. It must be as large as the limits allow."""
        sink = self.sinks[name]
        own = {row.contract for row in place.postponed()}
        ways = [contract for contract in own if any(item.contract == contract for item in sink.waiting)]
        others = any(item.contract not in own for item in sink.waiting)
        contract = data.draw(st.sampled_from([*sorted(ways), *([None] if others else [])]))
        waiting = [
            item for item in sink.waiting if (item.contract == contract if contract else item.contract not in own)
        ]
        batch = place.batch(max_events, max_bytes, contract)
        assert batch is not None
        events = list(batch.events)
        found = [item_of(event) for event in events]
        assert self._is_beginning(found, waiting)
        assert 1 <= len(events) <= max_events
        assert len(events) == 1 or sum(len(event.line) + 1 for event in events) <= max_bytes
        assert batch.has_more == (len(events) < len(waiting))
        return events

    def _is_beginning(self, found: Sequence[Item], waiting: Sequence[Item]) -> bool:
        """Whether these events come next. The order is guaranteed for the events of each contract."""
        return list(found) == list(waiting[: len(found)])

    def _settled(self, name: str, events: Iterable[OutboxEvent], dead: Sequence[OutboxEvent]) -> None:
        """Apply a settled batch to the model. Each event must be the next one of its contract."""
        sink = self.sinks[name]
        self.letters += [(name, item_of(event)) for event in dead]
        for event in events:
            item = item_of(event)
            assert next(waiting for waiting in sink.waiting if waiting.contract == item.contract) == item
            sink.waiting.remove(item)
            sink.delivered += 1
        sink.delivered -= len(dead)
        sink.dead += len(dead)

    @rule(sink=st.sampled_from(SINKS), attempts=st.integers(1, 9))
    def postpone(self, sink: str, attempts: int) -> None:
        if sink in self.sinks:
            postpone(self.state, sink, attempts, self.now, self.now + 60.0, "no connection")

    @precondition(lambda self: any(sink.waiting for sink in self.sinks.values()))
    @rule(data=st.data(), max_events=st.integers(1, 9), attempts=st.integers(1, 9))
    def postpone_contract(self, data: st.DataObject, max_events: int, attempts: int) -> None:
        """Postpone a contract of a batch, before or after a part of that batch was settled."""
        name = data.draw(st.sampled_from(sorted(name for name, sink in self.sinks.items() if sink.waiting)))
        place = self.state.outbox.take(name)
        assert place is not None
        batch = place.batch(max_events, 10**6)
        if batch is not None:
            contract = data.draw(st.sampled_from(sorted({event.contract for event in batch.events})))
            place.postpone_contract(contract, attempts, self.now, self.now + 60.0, "429")
            assert contract in {row.contract for row in place.postponed()}
            rest = [event for event in batch.events if event.contract != contract]
            if rest and data.draw(st.booleans()):
                place.settle(1, now=self.now)
                sink = self.sinks[name]
                sink.waiting.remove(item_of(rest[0]))
                sink.delivered += 1
        place.release()

    @precondition(lambda self: self.letters)
    @rule(sink=st.sampled_from(SINKS))
    def replay(self, sink: str) -> None:
        letters = self.state.dead_letters.find(sink)
        replayed = self.state.dead_letters.replay(letters, self.now)
        model = self.sinks.get(sink)
        if model is None:
            assert replayed == 0
            return
        assert replayed == len(letters)
        letters.sort(key=lambda letter: (letter.contract, letter.time_us, letter.id))
        model.waiting += [Item(letter.contract, letter.identity, letter.line) for letter in letters]
        model.dead -= replayed
        self.letters = [letter for letter in self.letters if letter[0] != sink]

    @precondition(lambda self: self.letters)
    @rule(sink=st.sampled_from(SINKS))
    def purge(self, sink: str) -> None:
        letters = self.state.dead_letters.find(sink)
        assert self.state.dead_letters.purge(letters) == len(letters)
        self.letters = [letter for letter in self.letters if letter[0] != sink]

    # Restarts

    @rule()
    def reopen(self) -> None:
        self.state.close()
        self.state = self._open()
        self._hold()

    @rule()
    def crash(self) -> None:
        """Continue with the state that is committed at this moment."""
        self._crash()
        self._hold()

    def _crash(self) -> None:
        raise NotImplementedError

    # What must hold at every step

    @invariant()
    def the_books_balance(self) -> None:
        assert self.state.overview().imbalances() == []

    @invariant()
    def contracts_are_as_in_the_model(self) -> None:
        rows = self.state.contracts.all()
        assert [row.contract for row in rows] == sorted(self.contracts)
        for row in rows:
            model = self.contracts[row.contract]
            assert (row.origin, row.watermark) == (model.origin, model.watermark)
            assert (row.fetched, row.new, row.seen, row.filtered) == (
                model.fetched,
                model.new,
                model.seen,
                model.filtered,
            )
            found = [(span.window, span.purpose) for span in self.state.contracts.ranges(row.contract)]
            assert sorted(found) == sorted(model.ranges)
            assert self._remembered(row.contract) == set(model.known)
            counted = self.state.contracts.counts(row.contract, START - 10 * HOUR, START + 10 * HOUR)
            assert {hour // HOUR: count.collected for hour, count in counted.items()} == model.counts

    @invariant()
    def sinks_are_as_in_the_model(self) -> None:
        overview = self.state.overview()
        assert [row.sink.name for row in overview.sinks] == sorted(self.sinks)
        for row in overview.sinks:
            model = self.sinks[row.sink.name]
            assert (row.sink.assigned, row.sink.delivered, row.sink.dead) == (
                model.assigned,
                model.delivered,
                model.dead,
            )
            assert row.waiting == len(model.waiting)
            own = self._on_their_own(row.sink.name)
            for contract in [None, *own]:
                batch = next_batch(self.state, row.sink.name, contract=contract)
                found = [item_of(event) for event in batch.events] if batch else []
                waiting = [
                    item
                    for item in model.waiting
                    if (item.contract == contract if contract else item.contract not in own)
                ]
                assert len(found) == len(waiting)
                assert self._is_beginning(found, waiting)
        letters = [
            (letter.sink, Item(letter.contract, letter.identity, letter.line))
            for letter in self.state.dead_letters.find()
        ]
        assert letters == self.letters

    def _on_their_own(self, sink: str) -> set[str]:
        with taken(self.state, sink) as place:
            return {row.contract for row in place.postponed()}

    @invariant()
    def the_outbox_holds_what_is_waited_for_and_no_finished_segment(self) -> None:
        size = self.state.outbox.size()
        longest = max((len(sink.waiting) for sink in self.sinks.values()), default=0)
        assert size.events >= longest
        assert (size.events == 0) == (size.bytes == 0)
        if self.sinks and not longest:
            assert size.events == 0
        assert size == self._lies_there()


class FileMachine(StoreMachine):
    """The state in a file."""

    def __init__(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="store-model-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
        self.directory = self.top / "0"
        super().__init__()

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.top)

    def _open(self) -> State:
        return FileState.open(self.directory, "run")

    def _crash(self) -> None:
        crashed = self.top / str(len(list(self.top.iterdir())))
        crashed.mkdir()
        for suffix in ("", "-wal"):
            path = self.directory / f"run.db{suffix}"
            if path.exists():
                shutil.copy(path, crashed)
        self.state.close()
        self.directory = crashed
        self.state = self._open()

    def _remembered(self, contract: str) -> set[bytes]:
        with self.state._database.reading() as connection:
            rows = connection.execute("SELECT identities FROM ledger WHERE contract = ?", (contract,)).fetchall()
        return identities_in(blob for (blob,) in rows)

    def _lies_there(self) -> tuple[int, int, int]:
        with self.state._database.reading() as connection:
            row = connection.execute(
                "SELECT coalesce(sum(events), 0), coalesce(sum(bytes), 0),"
                " (SELECT coalesce(sum(length(line)), 0) FROM dead_letters) FROM segments"
            ).fetchone()
        return (row[0], row[1], row[2])


_numbers = count()


class DatabaseMachine(StoreMachine):
    """The state in a database, with a second replica besides the working one."""

    stores: Any

    def __init__(self) -> None:
        self.use = f"model-{next(_numbers)}"
        self.other: Any = self._open()
        super().__init__()

    def teardown(self) -> None:
        self.other.close()
        super().teardown()

    def _open(self) -> State:
        opened: State = self.stores.open(self.use)
        return opened

    def _hold(self) -> None:
        for claim in claim_all(self.state, sorted(self.contracts)):
            claim.release()

    def _crash(self) -> None:
        """The lease of the replica ends; it releases nothing."""
        self._expire()
        self.state._joined()._stopped.set()
        self.state = self._open()

    def _is_beginning(self, found: Sequence[Item], waiting: Sequence[Item]) -> bool:
        """Only the events of each contract are in order, because contracts may belong to different replicas."""
        return all(
            super(DatabaseMachine, self)._is_beginning(
                [item for item in found if item.contract == contract],
                [item for item in waiting if item.contract == contract],
            )
            for contract in CONTRACTS
        )

    def _read(self, query: str, *values: object) -> list[Any]:
        return list(
            self.state._database.read(
                lambda connection: connection.execute(query, (self.state._use, *values), binary=True).fetchall()
            )
        )

    def _remembered(self, contract: str) -> set[bytes]:
        rows = self._read("SELECT identities FROM ledger WHERE use_id = %s AND contract = %s", contract)
        return identities_in(bytes(blob) for (blob,) in rows)

    def _lies_there(self) -> tuple[int, int, int]:
        ((events, size),) = self._read(
            "SELECT coalesce(sum(events), 0)::bigint, coalesce(sum(bytes), 0)::bigint FROM segments WHERE use_id = %s"
        )
        ((letters,),) = self._read("SELECT coalesce(sum(length(line)), 0)::bigint FROM dead_letters WHERE use_id = %s")
        return (events, size, letters)

    # A second replica

    def _expire(self) -> None:
        """The lease of the working replica ends, as if it was paused for too long."""
        token = self.state._joined().token
        query = "UPDATE replicas SET expires_at = clock_timestamp() - interval '1 second' WHERE token = %s"
        self.state._database.write(lambda connection: connection.execute(query, (token,)))

    def _swap(self) -> None:
        self.state, self.other = self.other, self.state
        self._hold()

    @rule()
    def give_over(self) -> None:
        """The working replica releases everything, and the other one continues."""
        self.state.contracts.share([])
        self._swap()

    @rule(contract=st.sampled_from(CONTRACTS), events=EVENTS, others=EVENTS)
    def a_zombie_commits(self, contract: str, events: list[Event], others: list[Event]) -> None:
        """The lease ends while a window is read. The other replica commits a window, and then the old one tries to commit."""
        model = self.contracts.get(contract)
        if model is None:
            return
        window = Window(max(model.origin, model.watermark - HOUR), model.watermark + 60)
        zombie = self.state
        claim = zombie.contracts.claim(contract)
        self._expire()
        self._swap()
        self._commit(contract, model, window, others, 0, 0, None, None)
        zombie._joined().renew()
        read = WindowRead(window, events, len(events), self.now, advance_to=window.end)
        with pytest.raises(LeaseLostError):
            claim.commit(read, Prepared)
        claim.release()

    @precondition(lambda self: any(sink.waiting for sink in self.sinks.values()))
    @rule(data=st.data(), max_events=st.integers(1, 9), is_delivered=st.booleans())
    def a_zombie_settles(self, data: st.DataObject, max_events: int, is_delivered: bool) -> None:
        """The lease ends while a batch is sent. The other replica may deliver it, and then the old one tries to settle it."""
        name = data.draw(st.sampled_from(sorted(name for name, sink in self.sinks.items() if sink.waiting)))
        zombie = self.state.outbox.take(name)
        assert zombie is not None
        sent = self._batch(data, name, zombie, max_events)
        self._expire()
        self._swap()
        if is_delivered:
            place = self.state.outbox.take(name)
            events = self._batch(data, name, place, max_events)
            place.settle(len(events), now=self.now)
            place.release()
            self._settled(name, events, [])
        with pytest.raises(LeaseLostError):
            zombie.settle(len(sent), now=self.now)
        zombie.release()
        self.other._joined().renew()

    # The answer to COMMIT is lost

    @rule(contract=st.sampled_from(CONTRACTS), events=EVENTS)
    def commit_without_an_answer(self, contract: str, events: list[Event]) -> None:
        model = self.contracts.get(contract)
        new = [event for event in events if model is not None and event.identity not in model.known]
        if model is None or not new:
            return
        window = Window(max(model.origin, model.watermark - HOUR), model.watermark + 60)
        read = WindowRead(window, events, len(events), self.now)
        with claimed(self.state, contract) as claim:
            with answer_lost(), pytest.raises(StateUnavailableError):
                claim.commit(read, Prepared)
            self._enter(contract, model, read, new, new)
            assert claim.commit(read, Prepared).new_count == 0
            self._enter(contract, model, read, [], [])

    @precondition(lambda self: any(sink.waiting for sink in self.sinks.values()))
    @rule(data=st.data(), max_events=st.integers(1, 9))
    def settle_without_an_answer(self, data: st.DataObject, max_events: int) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, sink in self.sinks.items() if sink.waiting)))
        place = self.state.outbox.take(name)
        assert place is not None
        events = self._batch(data, name, place, max_events)
        dead = [DeadLetter(events[0], 400, "refused")]
        with answer_lost(), pytest.raises(StateUnavailableError):
            place.settle(len(events), dead=dead, now=self.now)
        place.settle(len(events), dead=dead, now=self.now)
        place.release()
        self._settled(name, events, events[:1])


@contextmanager
def answer_lost() -> Iterator[None]:
    """The connection breaks after the next COMMIT was executed and before its answer arrives."""
    real = psycopg.Connection.execute
    is_armed = True

    def execute(connection: Any, query: Any, *args: Any, **options: Any) -> Any:
        nonlocal is_armed
        answer = real(connection, query, *args, **options)
        if is_armed and query == "COMMIT":
            is_armed = False
            connection.close()
            raise psycopg.OperationalError("the connection is lost")
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.Connection, "execute", execute)
        yield


def identities_in(blobs: Iterable[bytes]) -> set[bytes]:
    return {blob[start : start + IDENTITY_BYTES] for blob in blobs for start in range(0, len(blob), IDENTITY_BYTES)}


class Tried(NamedTuple):
    """A machine, and the number of its examples: a server is slower."""

    machine: type[StoreMachine]
    examples: int
    steps: int


@pytest.fixture(scope="module")
def debian_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The states on Debian's server. Its version differs from that of the wheel."""
    programs = debian_programs()
    if programs is None:
        pytest.skip("NOT CHECKED: the store on another version of PostgreSQL; Debian's is not there (postgresql)")
    server = Server(programs=programs)
    try:
        server.create()
        server.start()
        directory = tmp_path_factory.mktemp("exports")
        yield stores_of(load(None, {"IONOS_POLLER_STATE__URL": server.url()}, state_dir=directory))
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgres", "debian"])
def tried(request: pytest.FixtureRequest) -> Tried:
    """Each backend, with its number of examples."""
    if request.param == "sqlite":
        return Tried(FileMachine, 30, 30)
    DatabaseMachine.stores = request.getfixturevalue(f"{request.param}_stores")
    return Tried(DatabaseMachine, 8 if request.param == "postgres" else 3, 20)


def test_any_legal_actions_leave_the_state_as_the_model_says(tried: Tried) -> None:
    chosen = settings(max_examples=tried.examples, stateful_step_count=tried.steps, deadline=None)
    run_state_machine_as_test(tried.machine, settings=chosen)  # type: ignore[no-untyped-call]
