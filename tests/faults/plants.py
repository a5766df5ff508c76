"""Mistakes put into the program on purpose. The harness must find each of them. The shim runs them in the command's process.

A plant replaces names of one layer, to change one line of behaviour, as a person might by mistake.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from poller.core.delivery import Accepted
from poller.core.events import OutboxEvent

Events = Sequence[OutboxEvent]
Send = Callable[[Events], Any]
_MARK = Path("died")


def watermark_first() -> None:
    """The watermark is committed before the entries that it covers; a kill in between does harm."""
    from poller.store.rows import Prepare, WindowRead
    from poller.store.sqlite.contracts import Claim

    real = Claim.commit

    def commit(self: Claim, read: WindowRead, prepare: Prepare) -> Any:
        real(self, read._replace(events=(), fetched=0, is_repair=False), prepare)
        if read.events:
            _die_once()
        return real(self, read, prepare)

    Claim.commit = commit  # type: ignore[method-assign]


def settle_first() -> None:
    """A batch is settled before it is sent; a kill or an error in between loses it."""
    from poller.store.sqlite.places import Place

    settle = Place.settle
    Place.settle = lambda *args, **options: None  # type: ignore[method-assign]

    def around(deliverer: Any, sink: Any, send: Send) -> Send:
        is_settled = False

        def sending(events: Events) -> Any:
            nonlocal is_settled
            if not is_settled:
                settle(
                    deliverer._held(), len(events), now=time.time(), output_offset=getattr(sink, "output_offset", None)
                )
            outcome = send(events)
            is_settled = not isinstance(outcome, Accepted)
            return outcome

        return sending

    _replace_send(around)


def _die_once() -> None:
    """Kill the process at the moment at which it does harm, once for each plan. A file in the plan's directory remembers it."""
    from tests.faults.shim import die

    if not _has_died():
        _MARK.touch()
        die()


def _has_died() -> bool:
    return _MARK.exists()


def ledger_late() -> None:
    """The ledger gets the entries only after they were committed; a kill in between does harm."""
    from poller.store.rows import Prepare, WindowRead
    from poller.store.sqlite import ledger
    from poller.store.sqlite.contracts import Claim

    real, add, late = Claim.commit, ledger.add, threading.local()

    def add_late(*args: Any) -> None:
        if not getattr(late, "is_on", False):
            add(*args)

    def commit(self: Claim, read: WindowRead, prepare: Prepare) -> Any:
        late.is_on = True
        try:
            done = real(self, read._replace(advance_to=None), prepare)
        finally:
            late.is_on = False
        if done.kept_count:
            _die_once()
        everything = {event.identity for event in read.events}
        real(self, read._replace(fetched=0, elsewhere=everything, is_repair=False), prepare)
        return done

    ledger.add = add_late
    Claim.commit = commit  # type: ignore[method-assign]


def miscount() -> None:
    """The books count one entry too many."""
    from poller.store.sqlite.contracts import Claim

    real = Claim.commit

    def commit(self: Claim, *args: Any) -> Any:
        done = real(self, *args)
        with self._database.transaction() as connection:
            connection.execute("UPDATE contracts SET new = new + 1 WHERE contract = ?", (self.row.contract,))
        return done

    Claim.commit = commit  # type: ignore[method-assign]


def never_take_back() -> None:
    """A watermark in the future is accepted."""
    from poller.pipeline.clock_guard import ClockGuard

    ClockGuard._is_ahead = lambda self, row, now: False  # type: ignore[method-assign]


def forget_overlap() -> None:
    """Each poll begins where the last one ended: late entries are never read."""
    from poller.pipeline import collect

    real = collect.next_window
    collect.next_window = lambda watermark, origin, now, overlap: real(watermark, origin, now, 0)


def forget_ledger() -> None:
    """The ledger remembers nothing."""
    from poller.store.sqlite import ledger

    ledger.add = lambda *args, **options: None


def _as_accepted(kind: str) -> None:
    """An outcome of this kind counts as success."""
    from poller.pipeline import deliver

    real = deliver.decide

    def decide(outcome: Any, *rest: Any, **options: Any) -> Any:
        return real(Accepted() if type(outcome).__name__ == kind else outcome, *rest, **options)

    deliver.decide = decide


def drop_on_4xx() -> None:
    """An event that a sink refuses is dropped, without a dead letter."""
    _as_accepted("Refused")


def drop_on_5xx() -> None:
    """A batch is sent once, and never retried."""
    _as_accepted("RetryAfter")


def drop_on_bad_key() -> None:
    """A batch counts as delivered if the sink refused its key."""
    _as_accepted("CredentialsRefused")


def ignore_loki_refusals() -> None:
    """Loki's 400 about single entries is ignored: the request counts as accepted."""
    from poller.core.delivery import Refused
    from poller.sinks.loki import LokiSink

    real = LokiSink.send

    def send(self: Any, events: Any) -> Any:
        outcome = real(self, events)
        return Accepted() if isinstance(outcome, Refused) else outcome

    LokiSink.send = send  # type: ignore[method-assign]


def several_streams_in_one_push() -> None:
    """All streams of a batch go to Loki in one request. Loki answers only for the last stream."""
    from poller.sinks import loki

    def push(self: Any, events: Events) -> Any:
        streams: dict[Any, list[OutboxEvent]] = {}
        for event in events:
            streams.setdefault(self._stream_of(event), []).append(event)
        bodies = [loki.encode_push(stream, members, self._labels) for stream, members in streams.items()]
        return self._endpoint.post(
            b'{"streams":[' + b",".join(body[len(b'{"streams":[') : -2] for body in bodies) + b"]}"
        )

    loki.LokiSink._push = push  # type: ignore[method-assign]


def settle_before_kafka_reports() -> None:
    """A batch counts as delivered as soon as the sink has it. It is sent to Kafka only with the next one."""
    from poller.sinks.kafka import KafkaSink

    real = KafkaSink._transact
    late: dict[int, Any] = {}

    def transact(self: Any, events: Events, position: Any) -> Any:
        earlier, late[id(self)] = late.get(id(self)), list(events)
        return real(self, earlier, position) if earlier else None

    KafkaSink._transact = transact  # type: ignore[method-assign]


def forget_transaction_in_doubt() -> None:
    """After a kill or a lost answer nothing checks whether Kafka has the batch."""
    from poller.sinks.kafka import KafkaSink

    KafkaSink._read_back = lambda self, position: set()  # type: ignore[method-assign]


def advance_too_far() -> None:
    """The watermark goes an hour past the window's end."""
    from poller.core.windows import Window

    def change(read: Any) -> Any:
        if read.advance_to is None:
            return read
        later = Window(read.window.start, read.window.end + 3600)
        return read._replace(window=later, advance_to=read.advance_to + 3600)

    _change_commits(change)


def skip_failed_page() -> None:
    """A page that cannot be read counts as the end of its window."""
    from poller.core.answers import Page
    from poller.core.errors import TransientError
    from poller.ionos.api import ActivityLog

    real = ActivityLog.page

    def page(self: Any, contract: str, window: Any, offset: int, limit: int, **how: Any) -> Any:
        try:
            return real(self, contract, window, offset, limit, **how)
        except TransientError:
            return Page((), offset, is_capped=False, weight_bytes=0, is_mended=False)

    ActivityLog.page = page  # type: ignore[method-assign]


def stop_at_first_page() -> None:
    """Only the first page of a window is read."""
    from poller.ionos.api import ActivityLog

    real = ActivityLog.page

    def page(self: Any, contract: str, window: Any, offset: int, limit: int, **how: Any) -> Any:
        found = real(self, contract, window, offset, limit, **how)
        return msgspec.structs.replace(found, total=min(found.total or 0, offset + len(found.events)))

    ActivityLog.page = page  # type: ignore[method-assign]


def lose_last_of_batch() -> None:
    """The last event of a batch is not sent, and counts as delivered."""
    _change_sends(lambda events: events[:-1] if len(events) > 1 else events)


def repeat_first_of_batch() -> None:
    """The first event of every batch is sent twice."""
    _change_sends(lambda events: [events[0], *events])


def change_a_byte() -> None:
    """A digit of an entry is changed before it is sent."""
    _change_sends(lambda events: [event.with_line(event.line.replace(b"4", b"5", 1)) for event in events])


def _change_sends(change: Callable[[Events], Events]) -> None:
    _replace_send(lambda deliverer, sink, send: lambda events: send(change(events)))


def _replace_send(around: Callable[[Any, Any, Send], Send]) -> None:
    """Wrap `send` of every sink."""
    from poller.pipeline.deliver import Deliverer

    real = Deliverer.__init__

    def init(self: Any, outbox: Any, sink: Any, **options: Any) -> None:
        real(self, outbox, sink, **options)
        sink.send = around(self, sink, sink.send)

    Deliverer.__init__ = init  # type: ignore[method-assign]


def keep_torn_lines() -> None:
    """Half a line that a crash left at the end of a file stays there."""
    from poller.sinks import file

    write = file.write_whole

    def die_half_way(descriptor: int, data: bytes) -> None:
        if not _has_died():
            write(descriptor, data[: len(data) // 2])
        _die_once()
        write(descriptor, data)

    file.write_whole = die_half_way
    file.FileSink._cut_tail = lambda self, descriptor, path: self._check_kind(descriptor)  # type: ignore[method-assign]


def leave_half_lines() -> None:
    """Output is appended to a file even if it ends in half a line of ours."""
    from poller.sinks.stdout import StdoutSink
    from poller.system.files import write_whole

    def append(self: StdoutSink, data: bytes) -> int:
        write_whole(self._descriptor, data)
        return 0

    StdoutSink._append = append  # type: ignore[method-assign]


def settle_more_than_sent() -> None:
    """One event more than was sent is settled."""
    from poller.store.sqlite.places import Place

    real = Place.settle
    Place.settle = lambda self, count, **options: real(self, count + 1, **options)  # type: ignore[method-assign]


def never_settle() -> None:
    """An accepted batch is settled only in half of the cases, at random."""
    from poller.store.sqlite.places import Place

    real = Place.settle

    def settle(self: Any, count: int, **options: Any) -> None:
        if random.random() < 0.5:
            real(self, count, **options)

    Place.settle = settle  # type: ignore[method-assign]


def resend_all_after_failure() -> None:
    """After a failed send, all batches that were accepted before are sent again."""

    def around(deliverer: Any, sink: Any, send: Send) -> Send:
        sent: list[Events] = []

        def sending(events: Events) -> Any:
            outcome = send(events)
            if isinstance(outcome, Accepted):
                sent.append(list(events))
            else:
                for batch in sent:
                    send(batch)
            return outcome

        return sending

    _replace_send(around)


def open_twice() -> None:
    """After a commit the file is opened and closed outside of SQLite. The process then loses all its locks on it."""
    from poller.store.sqlite.contracts import Claim

    real = Claim.commit

    def commit(self: Claim, *args: Any) -> Any:
        done = real(self, *args)
        self._database.path.open("rb").close()
        return done

    Claim.commit = commit  # type: ignore[method-assign]


def distrust_bad_bodies() -> None:
    """A success with an unusable body counts as a failure: its batch is sent again."""
    from poller.core.errors import TransientError
    from poller.net.transport import Transport

    real = Transport.ask_status

    def ask_status(self: Any, *args: Any, **options: Any) -> Any:
        answer = real(self, *args, **options)
        if answer.status < 300 and not answer.is_whole:
            raise TransientError("the answer cannot be used")
        return answer

    Transport.ask_status = ask_status  # type: ignore[method-assign]


def forget_gaps() -> None:
    """The gaps of a window are not stored: they are never tried again."""
    _change_commits(lambda commit: commit._replace(unread=()))


def gap_holds_watermark() -> None:
    """The watermark does not pass a gap."""
    held: list[int] = []  # there is one contract

    def change(read: Any) -> Any:
        held[:] = sorted([*held, *(part.window.start for part in read.unread)])[:1]
        if read.advance_to is None or not held:
            return read
        return read._replace(advance_to=min(read.advance_to, held[0]))

    _change_commits(change)


def one_contract_holds_all() -> None:
    """If a sink does not take one contract, all contracts wait."""
    from poller.pipeline.deliver import Deliverer

    real = Deliverer.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        self._is_parting = False

    Deliverer.__init__ = init  # type: ignore[method-assign]


def postpone_unwritten() -> None:
    """A postponed contract is not stored: it is left out of the batch, and its place is lost."""
    from poller.store.sqlite.places import Place

    Place.postpone_contract = lambda *args: None  # type: ignore[method-assign]


def _change_commits(change: Callable[[Any], Any]) -> None:
    from poller.store.sqlite.contracts import Claim

    real = Claim.commit
    Claim.commit = lambda self, read, prepare: real(self, change(read), prepare)  # type: ignore[method-assign]


def archive_complete_first() -> None:
    """A batch of an archive counts as written before it is written."""
    from poller.sinks.archive import ArchiveSink
    from poller.store.sqlite.archives import Archives

    real, chains = ArchiveSink.write, {}
    prepared = Archives.prepared

    def remember(self: Any, sink: str) -> Any:
        chains[sink] = self
        return prepared(self, sink)

    def write(self: Any, batch: Any) -> Any:
        chains[self.name].complete(self.name, batch.number, time.time())
        _die_once()
        return real(self, batch)

    Archives.prepared = remember  # type: ignore[method-assign]
    ArchiveSink.write = write  # type: ignore[method-assign]


def archive_composed_anew() -> None:
    """A batch that was half written when the process died is composed again, from all events that wait then."""
    from poller.archive.directory import DirectoryPlace
    from poller.store.sqlite.archives import Archives

    prepared, put = Archives.prepared, DirectoryPlace.put
    is_first = [True]

    def forget(self: Any, sink: str) -> Any:
        if is_first and is_first.pop():
            with self._database.transaction() as connection:
                connection.execute("DELETE FROM archive_objects")
                is_late = connection.execute("DELETE FROM archive_batches").rowcount > 0
            if is_late:
                time.sleep(3.0)  # until more events wait
        return prepared(self, sink)

    def die_before_digest(self: Any, key: str, content: bytes, **options: Any) -> None:
        if key.startswith("digests/"):
            _die_once()
        put(self, key, content, **options)

    Archives.prepared = forget  # type: ignore[method-assign]
    DirectoryPlace.put = die_before_digest  # type: ignore[method-assign]


PLANTS = {
    plant.__name__.replace("_", "-"): plant
    for plant in (
        watermark_first,
        ledger_late,
        settle_first,
        miscount,
        forget_overlap,
        forget_ledger,
        drop_on_4xx,
        drop_on_5xx,
        drop_on_bad_key,
        ignore_loki_refusals,
        several_streams_in_one_push,
        settle_before_kafka_reports,
        forget_transaction_in_doubt,
        advance_too_far,
        never_take_back,
        skip_failed_page,
        stop_at_first_page,
        lose_last_of_batch,
        repeat_first_of_batch,
        change_a_byte,
        keep_torn_lines,
        leave_half_lines,
        settle_more_than_sent,
        never_settle,
        resend_all_after_failure,
        open_twice,
        distrust_bad_bodies,
        forget_gaps,
        gap_holds_watermark,
        one_contract_holds_all,
        postpone_unwritten,
        archive_complete_first,
        archive_composed_anew,
    )
}
