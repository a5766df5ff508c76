"""Apache Kafka, and what speaks its protocol, such as IONOS Event Streams. librdkafka does the work.

Invariants:
- A batch is one transaction: `read_committed` readers see all of it or nothing. A record's key is the contract, so that the
  order of a contract's entries holds.
- `output_offset` holds who writes (20 bits, drawn once for a state) and which transaction is in doubt (milliseconds since 1970,
  0 for none). It is in the state before the transaction begins, and without the doubt in the commit that settles the batch.
- A transaction in doubt, after a kill or a lost answer, is ended first: to begin with the same `transactional.id` fences its last
  user, and waits until what that one began is committed or aborted. Then the records of that transaction are read back, and what
  is there is not sent again. What goes with it in the same batch has the same name, so that a second kill finds both.

Source: docs/facts.md, "Kafka".
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from poller.config import KafkaSink as Settings
from poller.core.amounts import plural
from poller.core.delivery import Accepted, Outcome, RetryAfter
from poller.core.errors import StoppedError
from poller.core.events import OutboxEvent
from poller.sinks.base import Context, OwnOutput
from poller.sinks.brokers import POLL_SECONDS, Brokers, UnfinishedError
from poller.sinks.render import build_render

log = logging.getLogger(__name__)

_DOUBT_BITS = 43
_DOUBT_MASK = (1 << _DOUBT_BITS) - 1
_MAX_WRITER = (1 << 20) - 1
# Clocks of brokers that stamp records themselves may be so far from ours.
_MARGIN_MS = 10 * 60 * 1000

Uid = tuple[bytes, bytes]
"""What a record is known by: its key, and the text of its header `uid`."""


class Position(NamedTuple):
    """What is kept in the state, as one number: who writes, and which transaction is in doubt (0: none)."""

    writer: int
    doubt_ms: int

    @classmethod
    def of(cls, offset: int | None) -> Position:
        """Of a state without one, a new writer."""
        if offset is None:
            return cls(random.SystemRandom().randint(1, _MAX_WRITER), 0)
        return cls(offset >> _DOUBT_BITS, offset & _DOUBT_MASK)

    @property
    def offset(self) -> int:
        return self.writer << _DOUBT_BITS | self.doubt_ms

    @property
    def transaction(self) -> bytes:
        """The header `tx` of the records of the transaction in doubt."""
        return f"{self.writer:05x}-{self.doubt_ms}".encode()


class KafkaSink(OwnOutput):
    """Produces to one topic. For one thread."""

    def __init__(self, settings: Settings, context: Context, *, clock: Callable[[], float] = time.time) -> None:
        """Raises: ConfigError when confluent-kafka is not installed."""
        super().__init__(settings)
        self._table = settings
        self._brokers = Brokers(settings, context.stop)
        self._stop = context.stop
        self._clock = clock
        self._render = build_render(settings)
        self._producer: Any = None
        self._found: set[Uid] = set()  # of the transaction in doubt, and not settled yet
        self._is_any_found = False
        self._last_ms = 0

    def resume(self, offset: int | None) -> None:
        """Go on from there. What was known of a transaction may not hold any more: another process may have been here."""
        super().resume(offset)
        self._disconnect()

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Send a batch as one transaction, without what a transaction in doubt brought already.

        Raises: StoppedError; what `note_offset` raises.
        """
        outcome: Outcome | None = None
        try:
            outcome = self._brokers.guarded(lambda: self._send(events))
            return outcome
        finally:
            if not isinstance(outcome, Accepted):  # the next one begins anew
                self._disconnect()

    def _send(self, events: Sequence[OutboxEvent]) -> Outcome:
        position = Position.of(self.output_offset)
        if self._producer is None:
            self._producer = self._brokers.producer(f"ionos-poller-{self.name}-{position.writer:05x}")
            self._found = self._read_back(position) if position.doubt_ms else set()
            self._is_any_found = bool(self._found)
        rest = [event for event in events if _uid_of(event) not in self._found]
        if len(rest) < len(events):
            log.info("kafka.batch_found", extra={"sink": self.name, "events": len(events) - len(rest)})
            self._found.difference_update(map(_uid_of, events))
        if rest:
            self._last_ms = max(round(self._clock() * 1000), position.doubt_ms + 1, self._last_ms + 1)
            if not (position.doubt_ms and self._is_any_found):
                position = position._replace(doubt_ms=self._last_ms)
                self.output_offset = position.offset
                self.note_offset(position.offset)
            refusal = self._transact(rest, position)
            if refusal is not None:
                return refusal
            self._found = set()
        if not self._found:
            self.output_offset = position._replace(doubt_ms=0).offset
        return Accepted()

    def _transact(self, events: Sequence[OutboxEvent], position: Position) -> Outcome | None:
        """Write the events in one transaction; why not, where a record was refused."""
        producer, table, render = self._producer, self._table, self._render
        failed: list[Any] = []

        def report(error: Any, _: Any) -> None:
            if error is not None:
                failed.append(error)

        producer.begin_transaction()
        for event in events:
            key, uid = _uid_of(event)
            producer.produce(
                table.topic,
                render(event) if render else event.line,
                key=key,
                headers=[("uid", uid), ("tx", position.transaction)],
                # Of sending, by which a batch in doubt is found. By the entry's own, retention would delete late ones at once.
                timestamp=self._last_ms,
                on_delivery=report,
            )
        deadline = time.monotonic() + table.timeout_seconds
        while producer.flush(POLL_SECONDS) and not failed:
            if self._stop.is_set():
                raise StoppedError("asked to stop")
            if time.monotonic() > deadline:
                raise UnfinishedError("the brokers did not take the batch within timeout")
        if failed:
            return self._brokers.outcome(failed[0])
        producer.commit_transaction(table.timeout_seconds)
        return None

    def probe(self) -> Outcome:
        """Look at the topic, and begin as a transactional producer of another name. Writes nothing."""
        return self._brokers.guarded(self._probe)

    def _probe(self) -> Outcome:
        table, brokers = self._table, self._brokers
        topic = brokers.topic()
        if topic.error is not None:
            return brokers.outcome(topic.error)
        brokers.producer(f"ionos-poller-{self.name}-check")
        limit, replicas = brokers.limits()
        if limit is not None and limit < table.max_event_bytes:
            what = f"the topic takes records of {limit} bytes at most"
            return RetryAfter(
                f"{what}, less than max_event_bytes (raise its max.message.bytes, or lower max_event_bytes)"
            )
        in_sync = min((len(partition.isrs) for partition in topic.partitions.values()), default=0)
        if replicas is not None and in_sync < replicas:
            return RetryAfter(
                f"the topic has {plural(in_sync, 'replica')} in sync, and wants {replicas} (see min.insync.replicas)"
            )
        return Accepted()

    def _disconnect(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(self._brokers.error):
                producer.purge()

    def _read_back(self, position: Position) -> set[Uid]:
        """The records of the transaction in doubt that are committed.  Raises: what `committed_since` does."""
        found: set[Uid] = set()
        for message in self._brokers.committed_since(position.doubt_ms - _MARGIN_MS):
            headers = dict(message.headers() or ())
            if headers.get("tx") == position.transaction:
                found.add((message.key() or b"", headers.get("uid") or b""))
        return found


def _uid_of(event: OutboxEvent) -> Uid:
    ordinal = f"-{event.ordinal}" if event.ordinal else ""
    return event.contract.encode(), f"{event.identity.hex()}{ordinal}".encode()
