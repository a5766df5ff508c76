"""The state against a model of plain lists and sets: any legal actions in any order, with restarts and crashes in between."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from poller.core.events import IDENTITY_BYTES, Event
from poller.core.windows import Window
from poller.store import segments
from poller.store.rows import DeadLetter, Prepared, WindowRead
from poller.store.sqlite import State, ledger
from tests.states import claimed, next_batch, postpone, taken

HOUR = 3600
START = 100 * HOUR
CONTRACTS = ("1", "2")
SINKS = ("a", "b", "c")
# So small that a handful of events crosses the borders of chunks, segments and batches.
CHUNK_IDENTITIES = 3
SEGMENT_EVENTS = 3
# Hundreds of states are opened: what they hold is of interest, not how fast the disk is.
MEMORY = "/dev/shm"


class Item(NamedTuple):
    """An event as a sink sees it."""

    contract: str
    identity: bytes
    line: bytes


class ContractModel:
    """What must be true of a contract."""

    def __init__(self) -> None:
        self.origin = START
        self.watermark = START
        self.fetched = self.new = self.seen = self.filtered = 0
        self.known: dict[bytes, int] = {}  # identity to hour
        self.counts: dict[int, int] = {}  # hour to entries ever collected
        self.ranges: list[tuple[Window, str]] = []


class SinkModel:
    """What must be true of a sink: what waits, in order, and its books."""

    def __init__(self) -> None:
        self.waiting: list[Item] = []
        self.assigned = self.delivered = self.dead = 0


def an_event(number: int, hour: int) -> Event:
    """The same number is the same entry in every read: at the same time, or always without one."""
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
        self.top = Path(tempfile.mkdtemp(prefix="store-model-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
        self.directory = self.top / "0"
        self.state = State.open(self.directory, "run")
        self.now = START
        self.contracts: dict[str, ContractModel] = {}
        self.sinks: dict[str, SinkModel] = {}
        self.letters: list[tuple[str, Item]] = []

    def teardown(self) -> None:
        self.state.close()
        shutil.rmtree(self.top)
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
        assert (done.unseen, done.kept_count) == (unseen, len(kept))
        for event in unseen:
            hour = event.time_us // (HOUR * 1_000_000)
            model.known[event.identity] = hour
            model.counts[hour] = model.counts.get(hour, 0) + 1
        model.fetched += len(events) + repeats
        model.seen += len(events) - len(unseen) + repeats
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
            # What lies before may be remembered still (a chunk is forgotten whole): the state says what is.
            remembered = self._remembered(contract)
            assert {identity for identity, hour in model.known.items() if hour >= before} <= remembered
            assert remembered <= set(model.known)
            model.known = {identity: hour for identity, hour in model.known.items() if identity in remembered}

    def _remembered(self, contract: str) -> set[bytes]:
        """Every identity in the ledger: how it lies there is nobody's business but this model's."""
        with self.state._database.reading() as connection:
            rows = connection.execute("SELECT identities FROM ledger WHERE contract = ?", (contract,)).fetchall()
        return {
            blob[start : start + IDENTITY_BYTES] for (blob,) in rows for start in range(0, len(blob), IDENTITY_BYTES)
        }

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
        assert self.state.outbox.forget(sink) == (sink in self.sinks)
        self.sinks.pop(sink, None)

    @precondition(lambda self: any(sink.waiting for sink in self.sinks.values()))
    @rule(data=st.data(), max_events=st.integers(1, 9), max_bytes=st.integers(1, 100), dead_every=st.integers(2, 9))
    def settle(self, data: st.DataObject, max_events: int, max_bytes: int, dead_every: int) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, sink in self.sinks.items() if sink.waiting)))
        sink = self.sinks[name]
        place = self.state.outbox.take(name)
        assert place is not None
        own = {row.contract for row in place.postponed()}
        ways = [contract for contract in own if any(item.contract == contract for item in sink.waiting)]
        others = any(item.contract not in own for item in sink.waiting)
        contract = data.draw(st.sampled_from([*sorted(ways), *([None] if others else [])]))
        waiting = [
            item for item in sink.waiting if (item.contract == contract if contract else item.contract not in own)
        ]
        batch = place.batch(max_events, max_bytes, contract)
        assert batch is not None
        assert [Item(event.contract, event.identity, event.line) for event in batch.events] == waiting[
            : len(batch.events)
        ]
        assert 1 <= len(batch.events) <= max_events
        assert len(batch.events) == 1 or sum(len(event.line) + 1 for event in batch.events) <= max_bytes
        assert batch.has_more == (len(batch.events) < len(waiting))
        count = data.draw(st.integers(1, len(batch.events)))
        dead = batch.events[:count][dead_every - 1 :: dead_every]
        place.settle(count, dead=[DeadLetter(event, 400, "refused") for event in dead], now=self.now)
        place.release()
        self.letters += [(name, Item(event.contract, event.identity, event.line)) for event in dead]
        for item in waiting[:count]:
            sink.waiting.remove(item)
        sink.delivered += count - len(dead)
        sink.dead += len(dead)

    @rule(sink=st.sampled_from(SINKS), attempts=st.integers(1, 9))
    def postpone(self, sink: str, attempts: int) -> None:
        if sink in self.sinks:
            postpone(self.state, sink, attempts, self.now, self.now + 60.0, "no connection")

    @precondition(lambda self: any(sink.waiting for sink in self.sinks.values()))
    @rule(data=st.data(), max_events=st.integers(1, 9), attempts=st.integers(1, 9))
    def postpone_contract(self, data: st.DataObject, max_events: int, attempts: int) -> None:
        """Set a contract of a batch apart, before or after some of that batch was settled."""
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
                sink.waiting.remove(Item(rest[0].contract, rest[0].identity, rest[0].line))
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
        self.state = State.open(self.directory, "run")

    @rule()
    def crash(self) -> None:
        """Go on with what lay on the disk at this moment."""
        crashed = self.top / str(len(list(self.top.iterdir())))
        crashed.mkdir()
        for suffix in ("", "-wal"):
            path = self.directory / f"run.db{suffix}"
            if path.exists():
                shutil.copy(path, crashed)
        self.state.close()
        self.directory = crashed
        self.state = State.open(self.directory, "run")

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
                found = [Item(event.contract, event.identity, event.line) for event in batch.events] if batch else []
                assert found == [
                    item
                    for item in model.waiting
                    if (item.contract == contract if contract else item.contract not in own)
                ]
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
        with self.state._database.reading() as connection:
            held = connection.execute(
                "SELECT coalesce(sum(events), 0), coalesce(sum(bytes), 0),"
                " (SELECT coalesce(sum(length(line)), 0) FROM dead_letters) FROM segments"
            ).fetchone()
        assert size == held


StoreMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
test_any_legal_actions_leave_the_state_as_the_model_says = StoreMachine.TestCase
